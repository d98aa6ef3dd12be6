// The language model on a CPU: packed weights, caches and the whole loop of a generation.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace audiogen_fast {

struct DecoderConfig {
    std::int64_t dim = 0, heads = 0, layers = 0, hidden = 0, card = 0, codebooks = 0;
    std::int64_t rows = 0;       // batch times guidance, at most
    std::int64_t positions = 0;  // capacity of the self-attention cache
    std::int64_t text = 0;       // capacity of the cross-attention cache; 0: no cross-attention
    float eps = 1e-5f;
    std::string format = "float32";    // of the weights: float32, bfloat16, int8, int4
    std::string kv_format = "float32";  // of the caches: float32, bfloat16
    std::int64_t group = 128;           // columns per scale of int4: 64 or 128
    int threads = 1;
    std::string isa;  // empty: the best there is
};

// How the codes of a step are chosen; the meaning is that of ops/reference.py.
struct Sampling {
    bool greedy = false;
    float temperature = 1.0f, top_p = 0.0f;
    std::int64_t top_k = 0;
    std::uint32_t first_draw = 0;
    const std::int64_t* seeds = nullptr;  // [batch]
    const std::int64_t* items = nullptr;  // [batch]
};

// A sequence being filled: see DecodeJob in generation/job.py.
struct Sequence {
    std::int64_t* codes = nullptr;       // [batch, codebooks, steps], -1 where unknown
    const std::uint8_t* mask = nullptr;  // [codebooks, steps]
    std::int64_t batch = 0, steps = 0, start = 0;
    std::int64_t special = 0;
};

// What a packed matrix consists of; see kernels.h. `scales` is null for float32 and bfloat16.
struct PackedMatrix {
    const void* data = nullptr;
    std::int64_t data_bytes = 0;
    const void* scales = nullptr;
    std::int64_t scale_bytes = 0;
};

// Owns everything a generation needs; nothing is allocated while it runs. One generation at a time:
// a second caller gets std::runtime_error. Different decoders do not disturb one another.
class Decoder {
public:
    explicit Decoder(const DecoderConfig& config);  // throws std::invalid_argument
    ~Decoder();

    // Packs a matrix [n, k] of float32 with all threads. Names: qkv, out, cross_q, cross_kv, cross_out,
    // ff1, ff2 (with a layer) and heads (codebooks * card rows). `bias` is [n] or null. The source
    // is not kept.
    void set_matrix(const std::string& name, std::int64_t layer, const float* data, std::int64_t n,
                    std::int64_t k, const float* bias);
    // The same from what `packed_matrix` gave, which is not copied: it must outlive the decoder and
    // have exactly the sizes that shape and format ask for; `data` must be aligned to 64 bytes,
    // `scales` to 4.
    void set_packed(const std::string& name, std::int64_t layer, const void* data,
                    std::int64_t data_bytes, const void* scales, std::int64_t scale_bytes,
                    const float* bias);
    // Where a packed matrix lies.
    PackedMatrix packed_matrix(const std::string& name, std::int64_t layer) const;
    // norm1, norm_cross, norm2 (with a layer) and out_norm: weight and bias [dim].
    void set_norm(const std::string& name, std::int64_t layer, const float* weight,
                  const float* bias);
    // Embeddings [card + 1, dim] of a codebook; positions [positions, dim].
    void set_embedding(std::int64_t codebook, const float* data);
    void set_positions(const float* data, std::int64_t count);

    // Replaces caches and scratch by ones of other capacities; ends a generation, keeps the weights.
    void resize(std::int64_t rows, std::int64_t positions, std::int64_t text);

    // Starts a generation of `rows` rows, the first `text_rows` of which have text.
    void begin(std::int64_t rows, std::int64_t text_rows, std::int64_t steps);
    // Text [length, dim] of a row, made into keys and values once for all layers, and its zero slots.
    void set_text(std::int64_t row, const float* vectors, std::int64_t length, std::int64_t pads);
    // Decodes steps from .. to - 1 of the sequence (the first call feeds the prompt). With 2 batch
    // rows the halves are mixed by cfg_coef.
    void run(const Sequence& sequence, const Sampling& sampling, float cfg_coef, std::int64_t from,
             std::int64_t to);
    // Logits [batch, codebooks, card] of the last step, after guidance.
    void last_logits(float* out) const;

    // Bytes of weights that a step reads.
    std::int64_t weight_bytes() const;
    std::int64_t cache_bytes() const;
    std::string isa() const;
    int threads() const;

private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

// out [rows, n] = x [rows, k] times a matrix [n, k] packed in `format`, plus bias (or null); with
// `gelu`, its GELU. What the decoder does with every matrix, by itself.
void packed_multiply(const std::string& format, std::int64_t group, const std::string& isa,
                     const float* weight, std::int64_t n, std::int64_t k, const float* bias,
                     const float* x, std::int64_t rows, bool gelu, float* out);

// Names of the instruction sets that this processor can run, best first.
std::vector<std::string> available_isas();

}  // namespace audiogen_fast
