// A decoder's state: weights, caches, scratch and the generation that runs.
#pragma once

#include "audiogen_fast/decoder.h"

#include <atomic>
#include <map>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "kv_layout.h"
#include "memory.h"
#include "pack.h"
#include "sampler.h"
#include "team.h"

namespace audiogen_fast {

// Activations per pass of a prompt or a text.
constexpr std::int64_t kPrefillLanes = 32;
// Positions that attention sums up at a time. The parts are the same whatever the number of
// threads, and so is the result.
constexpr std::int64_t kAttentionPart = 128;

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

// The inputs of a product, normalised or quantised or both: a copy for each thread, which costs no
// barrier, or where there are many rows one for all.
struct InputCopy {
    std::vector<float> x, scale;
    std::vector<std::int8_t> q;
    std::vector<std::int32_t> sums;
};

// One thread's own memory.
struct Scratch {
    InputCopy inputs;
    std::vector<float> scores, parts_out, probs;
    std::vector<Part> parts;
};

// One column of codes of one row: what passes through the layers together.
struct Lane {
    std::int64_t row, position, item, step;
};

struct Decoder::Impl {
    explicit Impl(const DecoderConfig& c);

    // Caches and scratch for these capacities; the weights stay.
    void allocate(std::int64_t new_rows, std::int64_t new_positions, std::int64_t new_text);
    void allocate_all(std::int64_t new_rows, std::int64_t new_positions, std::int64_t new_text);

    // ---- phases.cpp: what a pass does, on every thread, with barriers between the phases ----
    void multiply(int rank, const Matrix& matrix, const float* input, std::int64_t input_stride,
                  std::int64_t count, const Norm* norm, float* out, std::int64_t out_stride,
                  Epilogue epilogue);
    void embed(int rank);
    template <typename Length, typename Write>
    void attend(int rank, const KVLayout& layout, const Cache& cache, std::int64_t count,
                std::int64_t query_stride, const Length& length, const Write& write);
    void self_attention(int rank, Cache& cache);
    void cross_attention(int rank, const Cache& cache);
    void layer_pass(int rank, std::size_t l);
    void pass(int rank);
    void heads_pass(int rank, float cfg_coef);
    void sample_pass(int rank, const Sampling& sampling, std::int64_t step);

    // ---- loop.cpp: driving the passes ----
    // Feeds steps begin .. end - 1 of all rows, without looking at the result.
    void prefill(int rank, std::int64_t begin, std::int64_t end);
    void decode_step(int rank, const Sampling& sampling, float cfg_coef, std::int64_t step);
    // Keys and values of a row's text, for all layers.
    void text_pass(int rank, std::int64_t row, const float* vectors, std::int64_t length);
    void check_complete() const;
    Layer& layer_at(std::int64_t layer);

    float* row_of(const Buffer& buffer, std::int64_t lane, std::int64_t width) const {
        return buffer.as<float>() + lane * width;
    }
    // This thread's part of n units.
    std::pair<std::int64_t, std::int64_t> share(std::int64_t n, int rank) const {
        return {n * rank / team.size(), n * (rank + 1) / team.size()};
    }

    DecoderConfig config;
    Format format;
    const Kernels& kernels;
    Team team;
    std::int64_t head_dim = 0, stride = 0, hidden_stride = 0, lanes_max = 0, parts_max = 0;
    KVLayout self, text;
    std::vector<Layer> layers;
    std::vector<Cache> self_cache, text_cache;
    std::vector<std::int64_t> text_length, text_pads;
    std::vector<Buffer> embeddings;
    Buffer positions;
    std::int64_t position_count = 0;
    Matrix heads;
    Norm out_norm;

    Buffer x, projected, attended, hidden, logits;
    InputCopy inputs;         // of products with many rows
    Buffer parts_out;        // attention in parts, where threads share a query
    std::vector<Part> parts;
    std::vector<Scratch> scratch;

    // of the generation that runs
    std::atomic<bool> busy{false};
    std::int64_t rows = 0, text_rows = 0, text_lanes = 0, steps = 0, fed = 0;
    Sequence sequence;
    std::vector<Lane> lanes;
};

}  // namespace audiogen_fast
