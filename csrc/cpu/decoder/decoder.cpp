// The public side of the decoder: checks what it is given before anything happens.
#include "plan.h"

#include <algorithm>
#include <cstring>

namespace audiogen_fast {
namespace {

using Shape = std::pair<std::int64_t, std::int64_t>;

Shape shape_of(const DecoderConfig& c, const std::string& name) {
    const std::map<std::string, Shape> shapes = {
        {"qkv", {3 * c.dim, c.dim}},      {"out", {c.dim, c.dim}},
        {"cross_q", {c.dim, c.dim}},      {"cross_kv", {2 * c.dim, c.dim}},
        {"cross_out", {c.dim, c.dim}},    {"ff1", {c.hidden, c.dim}},
        {"ff2", {c.dim, c.hidden}},       {"heads", {c.codebooks * c.card, c.dim}},
    };
    const auto found = shapes.find(name);
    require(found != shapes.end(), "unknown matrix " + name);
    return found->second;
}

// The text is read once, not at every step: its projections are worth more precision.
Format format_of(Format format, const std::string& name) {
    const bool integer = format == Format::int8 || format == Format::int4;
    return name == "cross_kv" && integer ? Format::bf16 : format;
}

// Marks a decoder as in use for the time of a call.
class InUse {
public:
    explicit InUse(std::atomic<bool>& busy) : busy_(busy) {
        if (busy_.exchange(true)) {
            throw std::invalid_argument(
                "another thread is generating with this native engine; give each its own engine");
        }
    }
    ~InUse() { busy_ = false; }
    InUse(const InUse&) = delete;
    InUse& operator=(const InUse&) = delete;

private:
    std::atomic<bool>& busy_;
};

}  // namespace

Decoder::Decoder(const DecoderConfig& config) : impl_(std::make_unique<Impl>(config)) {}
Decoder::~Decoder() = default;

void Decoder::set_matrix(const std::string& name, std::int64_t layer, const float* data,
                         std::int64_t n, std::int64_t k, const float* bias) {
    Impl& d = *impl_;
    const InUse in_use(d.busy);
    const auto [rows, columns] = shape_of(d.config, name);
    require(n == rows && k == columns,
            name + " must be [" + std::to_string(rows) + ", " + std::to_string(columns) +
                "], got [" + std::to_string(n) + ", " + std::to_string(k) + "]");
    Matrix& target = name == "heads" ? d.heads : d.layer_at(layer).matrices[name];
    target = pack(format_of(d.format, name), d.config.group, data, n, k, bias, d.team);
}

void Decoder::set_packed(const std::string& name, std::int64_t layer, const void* data,
                         std::int64_t data_bytes, const void* scales, std::int64_t scale_bytes,
                         const float* bias) {
    Impl& d = *impl_;
    const InUse in_use(d.busy);
    const auto [n, k] = shape_of(d.config, name);
    Matrix matrix = empty_matrix(format_of(d.format, name), d.config.group, n, k);
    const auto check = [&](const char* what, const void* address, std::int64_t bytes,
                           std::int64_t wanted, std::uintptr_t alignment) {
        require(bytes == wanted, std::string(what) + " of " + name + " must have " +
                                     std::to_string(wanted) + " bytes, got " +
                                     std::to_string(bytes));
        require(reinterpret_cast<std::uintptr_t>(address) % alignment == 0,
                std::string(what) + " of " + name + " must be aligned to " +
                    std::to_string(alignment) + " bytes");
    };
    check("data", data, data_bytes, matrix.view.data_bytes(), 64);
    check("scales", scales, scale_bytes, matrix.view.scale_bytes(), sizeof(float));
    matrix.view.data = static_cast<const std::uint8_t*>(data);
    matrix.view.scales = scale_bytes > 0 ? scales : nullptr;
    check_scales(matrix.view);
    set_bias(matrix, bias);
    (name == "heads" ? d.heads : d.layer_at(layer).matrices[name]) = std::move(matrix);
}

PackedMatrix Decoder::packed_matrix(const std::string& name, std::int64_t layer) const {
    Impl& d = *impl_;
    shape_of(d.config, name);
    const auto& matrices = d.layer_at(name == "heads" ? 0 : layer).matrices;
    require(name == "heads" || matrices.count(name) == 1,
            "layer " + std::to_string(layer) + " has no " + name);
    const Packed& view = name == "heads" ? d.heads.view : matrices.at(name).view;
    require(view.data != nullptr, "there are no " + name);
    return {view.data, view.data_bytes(), view.scales, view.scale_bytes()};
}

void Decoder::set_norm(const std::string& name, std::int64_t layer, const float* weight,
                       const float* bias) {
    require(name == "norm1" || name == "norm2" || name == "norm_cross" || name == "out_norm",
            "unknown norm " + name);
    const std::int64_t dim = impl_->config.dim;
    Norm& target = name == "out_norm" ? impl_->out_norm : impl_->layer_at(layer).norms[name];
    target.weight.assign(weight, weight + dim);
    target.bias.assign(bias, bias + dim);
}

void Decoder::set_embedding(std::int64_t codebook, const float* data) {
    const DecoderConfig& c = impl_->config;
    require(codebook >= 0 && codebook < c.codebooks, "codebook is out of range");
    Buffer& table = impl_->embeddings[static_cast<std::size_t>(codebook)];
    table = Buffer(static_cast<std::size_t>((c.card + 1) * c.dim) * sizeof(float));
    std::memcpy(table.as<float>(), data, table.bytes());
}

void Decoder::set_positions(const float* data, std::int64_t count) {
    require(count > 0, "positions must not be empty");
    impl_->positions =
        Buffer(static_cast<std::size_t>(count * impl_->config.dim) * sizeof(float));
    std::memcpy(impl_->positions.as<float>(), data, impl_->positions.bytes());
    impl_->position_count = count;
}

void Decoder::resize(std::int64_t rows, std::int64_t positions, std::int64_t text) {
    const InUse in_use(impl_->busy);
    impl_->allocate(rows, positions, text);
}

void Decoder::begin(std::int64_t rows, std::int64_t text_rows, std::int64_t steps) {
    const DecoderConfig& c = impl_->config;
    impl_->check_complete();
    require(rows >= 1 && rows <= c.rows,
            "rows must lie in 1.." + std::to_string(c.rows) + ", got " + std::to_string(rows));
    require(text_rows >= 0 && text_rows <= rows, "text_rows must lie in 0..rows");
    require(text_rows == 0 || c.text > 0, "this decoder has no cross-attention");
    const std::int64_t limit = std::min(c.positions, impl_->position_count);
    require(steps >= 2 && steps <= limit + 1,
            "steps must lie in 2.." + std::to_string(limit + 1) + ", got " + std::to_string(steps));
    const InUse in_use(impl_->busy);
    impl_->rows = rows;
    impl_->text_rows = text_rows;
    impl_->steps = steps;
    impl_->fed = 0;
    std::fill(impl_->text_length.begin(), impl_->text_length.end(), 0);
    std::fill(impl_->text_pads.begin(), impl_->text_pads.end(), 0);
}

void Decoder::set_text(std::int64_t row, const float* vectors, std::int64_t length,
                       std::int64_t pads) {
    Impl& d = *impl_;
    require(row >= 0 && row < d.rows, "row must lie in 0.." + std::to_string(d.rows - 1) +
                                          ", got " + std::to_string(row));
    require(length >= 0 && length <= d.config.text && pads >= 0,
            "text must have at most " + std::to_string(d.config.text) + " tokens, got " +
                std::to_string(length));
    const InUse in_use(d.busy);
    d.team.run([&](int rank) { d.text_pass(rank, row, vectors, length); });
    d.text_length[static_cast<std::size_t>(row)] = length;
    d.text_pads[static_cast<std::size_t>(row)] = pads;
}

void Decoder::run(const Sequence& sequence, const Sampling& sampling, float cfg_coef,
                  std::int64_t from, std::int64_t to) {
    Impl& d = *impl_;
    require(sequence.steps == d.steps && sequence.batch > 0 &&
                (d.rows == sequence.batch || d.rows == 2 * sequence.batch),
            "the sequence does not fit what was begun");
    require(sequence.start >= 1 && from >= sequence.start && from <= to && to <= sequence.steps,
            "steps to decode must lie in the sequence");
    require(from == sequence.start ? d.fed == 0 : from == d.fed + 1,
            "steps must be decoded in order");
    const InUse in_use(d.busy);
    const std::int64_t limit = d.config.card;
    for (std::int64_t i = 0; i < sequence.batch * d.config.codebooks; ++i) {
        for (std::int64_t s = d.fed; s < from; ++s) {
            const std::int64_t code = sequence.codes[i * sequence.steps + s];
            require(code >= 0 && code <= limit, "codes must lie in 0.." + std::to_string(limit) +
                                                    ", got " + std::to_string(code));
        }
    }
    for (std::int64_t b = 0; b < sequence.batch && !sampling.greedy; ++b) {
        require(sampling.items[b] >= 0 && sampling.items[b] <= 0xFFFFFFFF,
                "items must lie in [0, 2^32), got " + std::to_string(sampling.items[b]));
    }
    d.sequence = sequence;
    d.team.run([&](int rank) {
        if (from == sequence.start) d.prefill(rank, 0, from - 1);
        for (std::int64_t step = from; step < to; ++step) {
            d.decode_step(rank, sampling, cfg_coef, step);
        }
    });
    if (to > from) d.fed = to - 1;
}

void Decoder::last_logits(float* out) const {
    const DecoderConfig& c = impl_->config;
    std::memcpy(out, impl_->logits.as<float>(),
                static_cast<std::size_t>(impl_->sequence.batch * c.codebooks * c.card) *
                    sizeof(float));
}

std::int64_t Decoder::weight_bytes() const {
    std::int64_t total = 0;
    const auto add = [&](const Matrix& m) {
        total += m.view.data_bytes() + m.view.scale_bytes() +
                 static_cast<std::int64_t>(m.bias.bytes());
    };
    for (const Layer& layer : impl_->layers) {
        for (const auto& [name, matrix] : layer.matrices) {
            if (name != "cross_kv") add(matrix);
        }
    }
    add(impl_->heads);
    return total;
}

std::int64_t Decoder::cache_bytes() const {
    return impl_->config.layers * 2 *
           static_cast<std::int64_t>(impl_->self.bytes() + impl_->text.bytes());
}

std::string Decoder::isa() const { return impl_->kernels.name; }
int Decoder::threads() const { return impl_->team.size(); }

}  // namespace audiogen_fast
