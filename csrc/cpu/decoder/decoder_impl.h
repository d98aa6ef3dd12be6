// The model: what a step does, in phases that all threads run with barriers between.
#pragma once

#include "audiogen_fast/decoder.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <map>
#include <stdexcept>

#include "audiogen_fast/philox.h"
#include "kv_layout.h"
#include "memory.h"
#include "pack.h"
#include "sampler.h"
#include "team.h"

namespace audiogen_fast {

// Activations per pass of a prompt.
constexpr std::int64_t kPrefillLanes = 32;

inline void require(bool condition, const std::string& message) {
    if (!condition) throw std::invalid_argument(message);
}

struct Norm {
    std::vector<float> weight, bias;
};

struct Layer {
    std::map<std::string, Matrix> matrices;
    std::map<std::string, Norm> norms;
};

struct Cache {
    Buffer keys, values;
};

// One thread's own copy of the inputs of a product: normalised, or quantised, or both.
struct Scratch {
    std::vector<float> x, scale, scores, probs;
    std::vector<std::int8_t> q;
    std::vector<std::int32_t> sums;
};

// One column of codes of one row: what passes through the layers together.
struct Lane {
    std::int64_t row, position, item, step;
};

struct Decoder::Impl {
    explicit Impl(const DecoderConfig& c)
        : config(c),
          format(parse_format(c.format)),
          kernels(find_kernels(c.isa.c_str())),
          team(c.threads) {
        require(c.dim > 0 && c.heads > 0 && c.dim % c.heads == 0, "dim must be a multiple of heads");
        head_dim = c.dim / c.heads;
        require(head_dim % 16 == 0, "the width of a head must be a multiple of 16");
        require(c.layers > 0 && c.hidden > 0 && c.card > 0 && c.codebooks > 0,
                "sizes must be positive");
        require(c.group == 64 || c.group == 128, "group must be 64 or 128");
        require(c.kv_format == "float32" || c.kv_format == "bfloat16",
                "kv_format must be float32 or bfloat16, got " + c.kv_format);
        layers.resize(static_cast<std::size_t>(c.layers));
        embeddings.resize(static_cast<std::size_t>(c.codebooks));
        stride = round_up(c.dim, kRowStep);
        hidden_stride = round_up(c.hidden, kRowStep);
        allocate(c.rows, c.positions, c.text);
    }

    // Caches and scratch for these capacities; the weights stay.
    void allocate(std::int64_t new_rows, std::int64_t new_positions, std::int64_t new_text) {
        require(new_rows > 0 && new_positions > 0 && new_text >= 0, "capacities must be positive");
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
        const auto floats = [](std::int64_t n) { return static_cast<std::size_t>(n) * 4; };
        x = Buffer(floats(lanes_max * stride));
        projected = Buffer(floats(lanes_max * 3 * c.dim));
        attended = Buffer(floats(lanes_max * stride));
        hidden = Buffer(floats(lanes_max * hidden_stride));
        logits = Buffer(floats(c.rows * c.codebooks * c.card));
        noise = Buffer(floats(c.rows * c.codebooks * c.card));
        const std::int64_t widest = std::max(stride, hidden_stride);
        scratch.assign(static_cast<std::size_t>(team.size()), {});
        for (Scratch& s : scratch) {
            s.x.resize(static_cast<std::size_t>(lanes_max * stride));
            s.q.resize(static_cast<std::size_t>(lanes_max * widest));
            s.sums.resize(static_cast<std::size_t>(lanes_max * (widest / 64 + 1)));
            s.scale.resize(static_cast<std::size_t>(lanes_max));
            s.scores.resize(static_cast<std::size_t>(std::max(self.capacity, text.capacity)));
            s.probs.resize(static_cast<std::size_t>(3 * c.card));
        }
        lanes.reserve(static_cast<std::size_t>(lanes_max));
        rows = steps = fed = 0;
    }

    // ---- the phases of a pass; every thread runs all of them, with barriers between ----

    float* row_of(const Buffer& buffer, std::int64_t lane, std::int64_t width) const {
        return buffer.as<float>() + lane * width;
    }

    static std::pair<std::int64_t, std::int64_t> share(std::int64_t n, int rank, int size) {
        return {n * rank / size, n * (rank + 1) / size};
    }

    // This thread's part of `out (=|+=|gelu) w * input`, the input being x itself or its norm.
    void multiply(int rank, const Matrix& matrix, const float* input, std::int64_t input_stride,
                  std::int64_t count, const Norm* norm, float* out, std::int64_t out_stride,
                  Epilogue epilogue) {
        const Packed& w = matrix.view;
        Scratch& s = scratch[static_cast<std::size_t>(rank)];
        if (norm) {
            for (std::int64_t m = 0; m < count; ++m) {
                kernels.layer_norm(input + m * input_stride, norm->weight.data(),
                                   norm->bias.data(), config.eps, config.dim, stride,
                                   s.x.data() + m * stride);
            }
            input = s.x.data();
            input_stride = stride;
        }
        Inputs in;
        in.rows = count;
        in.stride = input_stride;
        in.x = input;
        if (w.integer()) {
            for (std::int64_t m = 0; m < count; ++m) {
                kernels.quantize(input + m * input_stride, w.k_padded, w.group,
                                 s.q.data() + m * input_stride, &s.scale[m],
                                 s.sums.data() + m * w.groups());
            }
            in.q = s.q.data();
            in.scale = s.scale.data();
            in.sums = s.sums.data();
        }
        const auto [begin, end] = share(w.tiles(), rank, team.size());
        kernels.multiply(w, in, out, out_stride, epilogue, begin, end);
    }

    void embed(int rank) {
        const auto [begin, end] = share(static_cast<std::int64_t>(lanes.size()), rank, team.size());
        for (std::int64_t m = begin; m < end; ++m) {
            const Lane& lane = lanes[static_cast<std::size_t>(m)];
            float* out = row_of(x, m, stride);
            std::fill_n(out, config.dim, 0.0f);
            for (std::int64_t k = 0; k < config.codebooks; ++k) {
                const std::int64_t code =
                    sequence.codes[(lane.item * config.codebooks + k) * sequence.steps + lane.step];
                const float* from = embeddings[static_cast<std::size_t>(k)].as<float>() +
                                    code * config.dim;
                for (std::int64_t d = 0; d < config.dim; ++d) out[d] += from[d];
            }
            const float* position = positions.as<float>() + lane.position * config.dim;
            for (std::int64_t d = 0; d < config.dim; ++d) out[d] += position[d];
        }
    }

    // Units of (row, head): all lanes of the row in order, so that each sees those before it.
    void self_attention(int rank, Cache& cache) {
        Scratch& s = scratch[static_cast<std::size_t>(rank)];
        const auto count = static_cast<std::int64_t>(lanes.size());
        const std::int64_t first_row = lanes.front().row;
        const std::int64_t n_rows = lanes.back().row - first_row + 1;
        const auto [begin, end] = share(n_rows * config.heads, rank, team.size());
        auto* keys = cache.keys.as<std::uint8_t>();
        auto* values = cache.values.as<std::uint8_t>();
        for (std::int64_t unit = begin; unit < end; ++unit) {
            const std::int64_t row = first_row + unit / config.heads, head = unit % config.heads;
            for (std::int64_t m = 0; m < count; ++m) {
                const Lane& lane = lanes[static_cast<std::size_t>(m)];
                if (lane.row != row) continue;
                const float* q = row_of(projected, m, 3 * config.dim) + head * head_dim;
                self.write(keys, values, row, head, lane.position, q + config.dim,
                           q + 2 * config.dim);
                const std::int64_t at = self.offset(row, head);
                kernels.attend(q, keys + at, values + at, self.half, lane.position + 1, 0, head_dim,
                               s.scores.data(), row_of(attended, m, stride) + head * head_dim);
            }
        }
    }

    void cross_attention(int rank, const Cache& cache, std::int64_t count) {
        Scratch& s = scratch[static_cast<std::size_t>(rank)];
        const auto [begin, end] = share(count * config.heads, rank, team.size());
        for (std::int64_t unit = begin; unit < end; ++unit) {
            const std::int64_t m = unit / config.heads, head = unit % config.heads;
            const std::int64_t row = lanes[static_cast<std::size_t>(m)].row;
            const std::int64_t at = text.offset(row, head);
            kernels.attend(row_of(projected, m, config.dim) + head * head_dim,
                           cache.keys.as<std::uint8_t>() + at,
                           cache.values.as<std::uint8_t>() + at, text.half,
                           text_length[static_cast<std::size_t>(row)],
                           text_pads[static_cast<std::size_t>(row)], head_dim, s.scores.data(),
                           row_of(attended, m, stride) + head * head_dim);
        }
    }

    void layer_pass(int rank, std::size_t l) {
        Layer& layer = layers[l];
        const auto count = static_cast<std::int64_t>(lanes.size());
        float* const stream = x.as<float>();
        multiply(rank, layer.matrices.at("qkv"), stream, stride, count, &layer.norms.at("norm1"),
                 projected.as<float>(), 3 * config.dim, Epilogue::store);
        team.barrier();
        self_attention(rank, self_cache[l]);
        team.barrier();
        multiply(rank, layer.matrices.at("out"), attended.as<float>(), stride, count, nullptr,
                 stream, stride, Epilogue::add);
        team.barrier();
        if (text_lanes > 0) {
            multiply(rank, layer.matrices.at("cross_q"), stream, stride, text_lanes,
                     &layer.norms.at("norm_cross"), projected.as<float>(), config.dim,
                     Epilogue::store);
            team.barrier();
            cross_attention(rank, text_cache[l], text_lanes);
            team.barrier();
            multiply(rank, layer.matrices.at("cross_out"), attended.as<float>(), stride, text_lanes,
                     nullptr, stream, stride, Epilogue::add);
            team.barrier();
        }
        multiply(rank, layer.matrices.at("ff1"), stream, stride, count, &layer.norms.at("norm2"),
                 hidden.as<float>(), hidden_stride, Epilogue::gelu);
        team.barrier();
        multiply(rank, layer.matrices.at("ff2"), hidden.as<float>(), hidden_stride, count, nullptr,
                 stream, stride, Epilogue::add);
        team.barrier();
    }

    // Logits of the last lanes, one per row: guidance mixes what the heads read, which is the same
    // as mixing what they give.
    void heads_pass(int rank, float cfg_coef) {
        const auto count = static_cast<std::int64_t>(lanes.size());
        const std::int64_t batch = sequence.batch;
        if (rank == 0) {
            for (std::int64_t m = 0; m < count; ++m) {
                kernels.layer_norm(row_of(x, m, stride), out_norm.weight.data(),
                                   out_norm.bias.data(), config.eps, config.dim, stride,
                                   row_of(attended, m, stride));
            }
            for (std::int64_t b = 0; b < batch && count == 2 * batch; ++b) {
                float* conditional = row_of(attended, b, stride);
                const float* unconditional = row_of(attended, b + batch, stride);
                for (std::int64_t d = 0; d < config.dim; ++d) {
                    conditional[d] =
                        unconditional[d] + (conditional[d] - unconditional[d]) * cfg_coef;
                }
            }
        }
        team.barrier();
        multiply(rank, heads, attended.as<float>(), stride, batch, nullptr, logits.as<float>(),
                 config.codebooks * config.card, Epilogue::store);
        team.barrier();
    }

    void sample_pass(int rank, const Sampling& sampling, std::int64_t step) {
        const std::int64_t units = sequence.batch * config.codebooks;
        const auto [begin, end] = share(units, rank, team.size());
        Scratch& s = scratch[static_cast<std::size_t>(rank)];
        for (std::int64_t unit = begin; unit < end; ++unit) {
            const std::int64_t k = unit % config.codebooks;
            std::int64_t& place = sequence.codes[unit * sequence.steps + step];
            if (place != -1) continue;  // a code of the prompt that the pattern delays
            if (!sequence.mask[k * sequence.steps + step]) {
                place = sequence.special;
                continue;
            }
            place = sample(kernels, logits.as<float>() + unit * config.card, config.card, sampling,
                           noise.as<float>() + unit * config.card, s.probs.data());
        }
    }

    // ---- driving the passes ----

    // Feeds steps begin .. end - 1 of all rows, without looking at the result.
    void prefill(int rank, std::int64_t begin, std::int64_t end) {
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

    void pass(int rank) {
        team.barrier();
        embed(rank);
        team.barrier();
        for (std::size_t l = 0; l < layers.size(); ++l) layer_pass(rank, l);
    }

    void decode_step(int rank, const Sampling& sampling, float cfg_coef, std::int64_t step) {
        if (rank == 0) {
            lanes.clear();
            for (std::int64_t row = 0; row < rows; ++row) {
                lanes.push_back({row, step - 1, row % sequence.batch, step - 1});
            }
            text_lanes = text_rows;
            if (!sampling.greedy) {
                const auto draw = static_cast<std::uint32_t>(sampling.first_draw + step -
                                                             sequence.start);
                philox_exponential(noise.as<float>(), sampling.seeds, sampling.items,
                                   sequence.batch, config.codebooks, config.card, draw);
            }
        }
        pass(rank);
        heads_pass(rank, cfg_coef);
        sample_pass(rank, sampling, step);
        team.barrier();
    }

    void check_complete() const {
        std::vector<std::string> needed = {"qkv", "out", "ff1", "ff2"};
        std::vector<std::string> norms = {"norm1", "norm2"};
        if (config.text > 0) {
            needed.insert(needed.end(), {"cross_q", "cross_out"});
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

    Layer& layer_at(std::int64_t layer) {
        require(layer >= 0 && layer < config.layers,
                "layer must lie in 0.." + std::to_string(config.layers - 1) + ", got " +
                    std::to_string(layer));
        return layers[static_cast<std::size_t>(layer)];
    }

    DecoderConfig config;
    Format format;
    const Kernels& kernels;
    Team team;
    std::int64_t head_dim = 0, stride = 0, hidden_stride = 0, lanes_max = 0;
    KVLayout self, text;
    std::vector<Layer> layers;
    std::vector<Cache> self_cache, text_cache;
    std::vector<std::int64_t> text_length, text_pads;
    std::vector<Buffer> embeddings;
    Buffer positions;
    std::int64_t position_count = 0;
    Matrix heads;
    Norm out_norm;
    Buffer x, projected, attended, hidden, logits, noise;
    std::vector<Scratch> scratch;

    // of the generation that runs
    std::atomic<bool> busy{false};
    std::int64_t rows = 0, text_rows = 0, text_lanes = 0, steps = 0, fed = 0;
    Sequence sequence;
    std::vector<Lane> lanes;
};

}  // namespace audiogen_fast
