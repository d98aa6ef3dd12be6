// Building a decoder's state, and driving its passes.
#include "plan.h"

#include <algorithm>
#include <cstring>

namespace audiogen_fast {

Decoder::Impl::Impl(const DecoderConfig& c)
    : config(c),
      format(parse_format(c.format)),
      kernels(find_kernels(c.isa.c_str())),
      team(c.threads) {
    require(c.dim > 0 && c.heads > 0 && c.dim % c.heads == 0, "dim must be a multiple of heads");
    head_dim = c.dim / c.heads;
    require(head_dim % 16 == 0, "the width of a head must be a multiple of 16");
    require(c.layers > 0 && c.hidden > 0 && c.card > 0 && c.codebooks > 0, "sizes must be positive");
    require(c.group == 64 || c.group == 128,
            "group must be 64 or 128, got " + std::to_string(c.group));
    require(c.kv_format == "float32" || c.kv_format == "bfloat16",
            "kv_format must be float32 or bfloat16, got " + c.kv_format);
    layers.resize(static_cast<std::size_t>(c.layers));
    embeddings.resize(static_cast<std::size_t>(c.codebooks));
    stride = round_up(c.dim, kRowStep);
    hidden_stride = round_up(c.hidden, kRowStep);
    allocate(c.rows, c.positions, c.text);
}

void Decoder::Impl::allocate(std::int64_t new_rows, std::int64_t new_positions,
                             std::int64_t new_text) {
    require(new_rows > 0 && new_positions > 0 && new_text >= 0, "capacities must be positive");
    try {
        allocate_all(new_rows, new_positions, new_text);
    } catch (...) {
        // Half of it would be written past its end: `begin` must refuse every row.
        config.rows = config.positions = config.text = 0;
        throw;
    }
}

void Decoder::Impl::allocate_all(std::int64_t new_rows, std::int64_t new_positions,
                                 std::int64_t new_text) {
    config.rows = new_rows;
    config.positions = new_positions;
    config.text = new_text;
    const DecoderConfig& c = config;
    const bool half = c.kv_format == "bfloat16";
    self = {c.rows, c.heads, round_up(c.positions, 16), head_dim, half};
    text = {c.rows, c.heads, round_up(c.text, 16), head_dim, half};
    self_cache.clear();
    text_cache.clear();
    for (std::int64_t l = 0; l < c.layers; ++l) {
        self_cache.push_back({Buffer(self.bytes()), Buffer(self.bytes())});
        text_cache.push_back({Buffer(text.bytes()), Buffer(text.bytes())});
    }
    text_length.assign(static_cast<std::size_t>(c.rows), 0);
    text_pads.assign(static_cast<std::size_t>(c.rows), 0);
    lanes_max = std::max(c.rows, kPrefillLanes);
    const std::int64_t longest = std::max(self.capacity, text.capacity);
    parts_max = (longest + kAttentionPart - 1) / kAttentionPart;
    const auto floats = [](std::int64_t n) { return static_cast<std::size_t>(n) * 4; };
    x = Buffer(floats(lanes_max * stride));
    projected = Buffer(floats(lanes_max * 3 * c.dim));
    attended = Buffer(floats(lanes_max * stride));
    hidden = Buffer(floats(lanes_max * hidden_stride));
    logits = Buffer(floats(c.rows * c.codebooks * c.card));
    // Parts are shared where there are fewer than two queries for each thread.
    const std::int64_t units = std::min<std::int64_t>(lanes_max * c.heads, 2 * team.size());
    parts_out = Buffer(floats(units * parts_max * head_dim));
    parts.resize(static_cast<std::size_t>(units * parts_max));
    const auto allocate_copy = [&](InputCopy& copy) {
        const std::int64_t widest = std::max(stride, hidden_stride);
        copy.x.resize(static_cast<std::size_t>(lanes_max * stride));
        copy.q.resize(static_cast<std::size_t>(lanes_max * widest));
        copy.sums.resize(static_cast<std::size_t>(lanes_max * (widest / 64 + 1)));
        copy.scale.resize(static_cast<std::size_t>(lanes_max));
    };
    allocate_copy(inputs);
    scratch.assign(static_cast<std::size_t>(team.size()), {});
    for (Scratch& s : scratch) {
        allocate_copy(s.inputs);
        s.scores.resize(static_cast<std::size_t>(kAttentionPart));
        s.parts_out.resize(static_cast<std::size_t>(parts_max * head_dim));
        s.parts.resize(static_cast<std::size_t>(parts_max));
        s.probs.resize(static_cast<std::size_t>(3 * c.card));
    }
    lanes.reserve(static_cast<std::size_t>(lanes_max));
    rows = steps = fed = 0;
}

void Decoder::Impl::prefill(int rank, std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = 0; row < rows; ++row) {
        for (std::int64_t step = begin; step < end; step += kPrefillLanes) {
            if (rank == 0) {
                lanes.clear();
                for (std::int64_t i = step; i < std::min(end, step + kPrefillLanes); ++i) {
                    lanes.push_back({row, i, row % sequence.batch, i});
                }
                text_lanes = row < text_rows ? static_cast<std::int64_t>(lanes.size()) : 0;
            }
            pass(rank);
        }
    }
}

void Decoder::Impl::decode_step(int rank, const Sampling& sampling, float cfg_coef,
                                std::int64_t step) {
    if (rank == 0) {
        lanes.clear();
        for (std::int64_t row = 0; row < rows; ++row) {
            lanes.push_back({row, step - 1, row % sequence.batch, step - 1});
        }
        text_lanes = text_rows;
    }
    pass(rank);
    heads_pass(rank, cfg_coef);
    sample_pass(rank, sampling, step);
    team.barrier();
}

void Decoder::Impl::text_pass(int rank, std::int64_t row, const float* vectors,
                              std::int64_t length) {
    const std::int64_t width = 2 * config.dim;
    for (std::int64_t first = 0; first < length; first += kPrefillLanes) {
        const std::int64_t count = std::min(kPrefillLanes, length - first);
        if (rank == 0) {
            for (std::int64_t m = 0; m < count; ++m) {
                std::memcpy(row_of(x, m, stride), vectors + (first + m) * config.dim,
                            static_cast<std::size_t>(config.dim) * sizeof(float));
            }
        }
        team.barrier();
        for (std::size_t l = 0; l < layers.size(); ++l) {
            multiply(rank, layers[l].matrices.at("cross_kv"), x.as<float>(), stride, count, nullptr,
                     projected.as<float>(), width, Epilogue::store);
            team.barrier();
            const auto [begin, end] = share(count * config.heads, rank);
            for (std::int64_t unit = begin; unit < end; ++unit) {
                const std::int64_t m = unit / config.heads, head = unit % config.heads;
                const float* k = row_of(projected, m, width) + head * head_dim;
                text.write(text_cache[l].keys.as<std::uint8_t>(),
                           text_cache[l].values.as<std::uint8_t>(), row, head, first + m, k,
                           k + config.dim);
            }
            team.barrier();
        }
    }
}

void Decoder::Impl::check_complete() const {
    std::vector<std::string> needed = {"qkv", "out", "ff1", "ff2"};
    std::vector<std::string> norms = {"norm1", "norm2"};
    if (config.text > 0) {
        needed.insert(needed.end(), {"cross_q", "cross_kv", "cross_out"});
        norms.emplace_back("norm_cross");
    }
    for (std::size_t l = 0; l < layers.size(); ++l) {
        for (const auto& name : needed) {
            require(layers[l].matrices.count(name) == 1,
                    "layer " + std::to_string(l) + " has no " + name);
        }
        for (const auto& name : norms) {
            require(layers[l].norms.count(name) == 1,
                    "layer " + std::to_string(l) + " has no " + name);
        }
    }
    require(heads.view.n > 0 && !out_norm.weight.empty(), "heads or out_norm are missing");
    for (const Buffer& table : embeddings) {
        require(table.bytes() > 0, "an embedding is missing");
    }
}

Layer& Decoder::Impl::layer_at(std::int64_t layer) {
    require(layer >= 0 && layer < config.layers,
            "layer must lie in 0.." + std::to_string(config.layers - 1) + ", got " +
                std::to_string(layer));
    return layers[static_cast<std::size_t>(layer)];
}

}  // namespace audiogen_fast
