// The public side of the decoder: checks what it is given, packs it, and drives decoder_impl.h.
#include "decoder_impl.h"

namespace audiogen_fast {

Decoder::Decoder(const DecoderConfig& config) : impl_(std::make_unique<Impl>(config)) {}
Decoder::~Decoder() = default;

void Decoder::set_matrix(const std::string& name, std::int64_t layer, const float* data,
                         std::int64_t n, std::int64_t k, const float* bias) {
    const DecoderConfig& c = impl_->config;
    const std::map<std::string, std::pair<std::int64_t, std::int64_t>> shapes = {
        {"qkv", {3 * c.dim, c.dim}},     {"out", {c.dim, c.dim}},
        {"cross_q", {c.dim, c.dim}},     {"cross_out", {c.dim, c.dim}},
        {"ff1", {c.hidden, c.dim}},      {"ff2", {c.dim, c.hidden}},
        {"heads", {c.codebooks * c.card, c.dim}},
    };
    const auto found = shapes.find(name);
    require(found != shapes.end(), "unknown matrix " + name);
    const auto [rows, columns] = found->second;
    require(n == rows && k == columns,
            name + " must be [" + std::to_string(rows) + ", " + std::to_string(columns) +
                "], got [" + std::to_string(n) + ", " + std::to_string(k) + "]");
    Matrix& target = name == "heads" ? impl_->heads : impl_->layer_at(layer).matrices[name];
    target = pack(impl_->format, c.group, data, n, k, bias);
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
    if (impl_->busy) throw std::runtime_error("the decoder is in use by another thread");
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
    if (impl_->busy) throw std::runtime_error("the decoder is in use by another thread");
    impl_->rows = rows;
    impl_->text_rows = text_rows;
    impl_->steps = steps;
    impl_->fed = 0;
    std::fill(impl_->text_length.begin(), impl_->text_length.end(), 0);
    std::fill(impl_->text_pads.begin(), impl_->text_pads.end(), 0);
}

void Decoder::set_text(std::int64_t row, std::int64_t layer, const float* keys,
                       const float* values, std::int64_t length, std::int64_t pads) {
    Impl& d = *impl_;
    require(row >= 0 && row < d.rows, "row is out of range");
    d.layer_at(layer);
    require(length >= 0 && length <= d.config.text && pads >= 0,
            "text must have at most " + std::to_string(d.config.text) + " tokens, got " +
                std::to_string(length));
    Cache& cache = d.text_cache[static_cast<std::size_t>(layer)];
    for (std::int64_t head = 0; head < d.config.heads; ++head) {
        for (std::int64_t p = 0; p < length; ++p) {
            const std::int64_t at = (head * length + p) * d.head_dim;
            d.text.write(cache.keys.as<std::uint8_t>(), cache.values.as<std::uint8_t>(), row, head,
                         p, keys + at, values + at);
        }
    }
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
    if (d.busy.exchange(true)) throw std::runtime_error("the decoder is in use by another thread");
    const std::int64_t limit = d.config.card;
    for (std::int64_t i = 0; i < sequence.batch * d.config.codebooks; ++i) {
        for (std::int64_t s = d.fed; s < from; ++s) {
            const std::int64_t code = sequence.codes[i * sequence.steps + s];
            if (code < 0 || code > limit) {
                d.busy = false;
                throw std::invalid_argument("codes must lie in 0.." + std::to_string(limit) +
                                            ", got " + std::to_string(code));
            }
        }
    }
    d.sequence = sequence;
    d.team.run([&](int rank) {
        if (from == sequence.start) d.prefill(rank, 0, from - 1);
        for (std::int64_t step = from; step < to; ++step) {
            d.decode_step(rank, sampling, cfg_coef, step);
        }
    });
    if (to > from) d.fed = to - 1;
    d.busy = false;
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
        total += static_cast<std::int64_t>(m.data.bytes() + m.scales.bytes() + m.bias.bytes());
    };
    for (const Layer& layer : impl_->layers) {
        for (const auto& [name, matrix] : layer.matrices) add(matrix);
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
