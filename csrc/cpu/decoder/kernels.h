// The inner loops of the decoder: one table of functions per instruction set.
#pragma once

#include <cstdint>
#include <vector>

namespace audiogen_fast {

enum class Format { f32, bf16, int8, int4 };

// A weight matrix [n, k] packed in tiles of 16 rows, so that a vector holds 16 outputs and no lane
// is ever summed across.
//
// Tile t holds rows 16 t .. 16 t + 15 (rows past n are zero), columns padded with zeros to k_padded:
//   f32   for each column: 16 floats
//   bf16  for each pair of columns: 16 x (even column, odd column)
//   int8  for each 4 columns: 16 x 4 bytes, the value plus 128
//   int4  for each 8 columns: 16 x 4 bytes, columns 0-3 in the low and 4-7 in the high nibbles, the
//         value plus 8
// The integer formats have a scale per row and group of columns: float32 [tile][16] for int8 (one
// group), bfloat16 [tile][group][16] for int4.
struct Packed {
    Format format = Format::f32;
    std::int64_t n = 0, k = 0, k_padded = 0, group = 0;
    const std::uint8_t* data = nullptr;
    const void* scales = nullptr;
    const float* bias = nullptr;  // [n] or null

    std::int64_t tiles() const { return (n + 15) / 16; }
    std::int64_t tile_bytes() const {
        const std::int64_t bits = format == Format::f32    ? 32
                                  : format == Format::bf16 ? 16
                                  : format == Format::int8 ? 8
                                                           : 4;
        return 16 * k_padded * bits / 8;
    }
    bool integer() const { return format == Format::int8 || format == Format::int4; }
    std::int64_t groups() const { return integer() ? k_padded / group : 0; }
    std::int64_t data_bytes() const { return tiles() * tile_bytes(); }
    std::int64_t scale_bytes() const {
        return tiles() * 16 * groups() * (format == Format::int8 ? 4 : 2);
    }
};

// Activations [rows, k_padded] of a product, zero past k; `q`, `scale`, `sums` for integer weights.
struct Inputs {
    std::int64_t rows = 0, stride = 0;
    const float* x = nullptr;          // [rows, stride]
    const std::int8_t* q = nullptr;    // [rows, stride]
    const float* scale = nullptr;      // [rows]: x = q * scale
    const std::int32_t* sums = nullptr;  // [rows, groups]: sums of q over a group
};

enum class Epilogue { store, add, gelu };

// A softmax over some of the positions: the largest score, and the sum of exp(score - top).
struct Part {
    float top, total;
};

struct Kernels {
    const char* name;
    // out[m, tile rows] (= | += | = gelu of) w x[m] + bias, for tiles begin .. end - 1.
    void (*multiply)(const Packed& w, const Inputs& in, float* out, std::int64_t out_stride,
                     Epilogue epilogue, std::int64_t begin, std::int64_t end);
    // out[i] = (x[i] - mean) / sqrt(var + eps) * weight[i] + bias[i], zeros in n .. padded - 1
    void (*layer_norm)(const float* x, const float* weight, const float* bias, float eps,
                       std::int64_t n, std::int64_t padded, float* out);
    // q = round(x / scale) with scale = max |x| / 127, and the sums of q over groups
    void (*quantize)(const float* x, std::int64_t n, std::int64_t group, std::int8_t* q,
                     float* scale, std::int32_t* sums);
    // One query over the cached positions begin .. end - 1 (see kv_layout.h), begin a multiple of
    // 16: out[d] = sum over p of exp(score_p - top) value_p[d], and `part` says which top and what
    // the weights sum to. `scores` is scratch for the positions, rounded up to 16.
    void (*attend)(const float* q, const void* keys, const void* values, bool half,
                   std::int64_t begin, std::int64_t end, std::int64_t head_dim, float* scores,
                   float* out, Part* part);
    // Attention from `count` parts, given as [count, head_dim]. `pads` more positions have score and
    // value zero.
    void (*merge)(const float* parts_out, const Part* parts, std::int64_t count, std::int64_t pads,
                  std::int64_t head_dim, float* out);
    // probs = softmax(logits / temperature)
    void (*softmax)(const float* logits, std::int64_t n, float temperature, float* probs);
};

// The kernels this processor can run, best first. AUDIOGEN_FAST_ISA names one to use instead.
std::vector<const Kernels*> available_kernels();
const Kernels& find_kernels(const char* name);  // throws std::invalid_argument

}  // namespace audiogen_fast
