// Definitions of the kernels, compiled once per instruction set; see kernels.h and vec.h.
#include "kernels.h"
#include "vec.h"

namespace audiogen_fast::AF_ISA {

// erf(x) within 2e-7: x P(x^2) up to 1, then 1 - exp(R(x)). P and R are Chebyshev fits of
// erf(x) / x over x^2 in [0, 1] and of log erfc(x) over [1, 4].
inline F16 erf(F16 x) {
    constexpr float P[] = {1.128379166e+00f, -3.761262690e-01f, 1.128359746e-01f, -2.685432880e-02f,
                             5.189311943e-03f, -8.018854992e-04f, 7.882497111e-05f};
    constexpr float R[] = {3.032129859e-04f,  -1.130166676e+00f, -6.319370936e-01f,
                             -1.099782452e-01f, 2.636471741e-02f,  -4.740222356e-03f,
                             5.927695406e-04f,  -4.559062274e-05f, 1.614061617e-06f};
    const F16 one = splat(1.0f), a = min(abs(x), splat(4.0f));
    const F16 u = min(a * a, one), v = max(a, one);
    F16 p = splat(P[6]), r = splat(R[8]);
    for (int i = 5; i >= 0; --i) p = fma(p, u, splat(P[i]));
    for (int i = 7; i >= 0; --i) r = fma(r, v, splat(R[i]));
    const F16 small = min(a, one) * p, large = one - exp(r);
    return with_sign_of(where_less(one, a, large, small), x);
}

inline F16 gelu(F16 x) {
    return splat(0.5f) * x * (splat(1.0f) + erf(x * splat(0.70710678f)));
}

// How far ahead of what is being read the next weights are asked for: a processor's own prefetching
// stops at every page.
constexpr std::int64_t kAhead = 4096;

// acc[m] = tile t of w times row m0 + m, for float32 weights.
template <int M>
void accumulate_f32(const Packed& w, const Inputs& in, std::int64_t t, std::int64_t m0,
                    F16 (&acc)[M]) {
    const auto* p = reinterpret_cast<const float*>(w.data + t * w.tile_bytes());
    const float* x = in.x + m0 * in.stride;
    for (std::int64_t k = 0; k < w.k_padded; ++k) {
        AF_PREFETCH(p + 16 * k + kAhead / 4);
        const F16 column = load(p + 16 * k);
        for (int m = 0; m < M; ++m) acc[m] = fma(column, splat(x[m * in.stride + k]), acc[m]);
    }
}

template <int M>
void accumulate_bf16(const Packed& w, const Inputs& in, std::int64_t t, std::int64_t m0,
                     F16 (&acc)[M]) {
    const auto* p = reinterpret_cast<const std::uint16_t*>(w.data + t * w.tile_bytes());
    const float* x = in.x + m0 * in.stride;
    F16 odds[M];  // two sums for each row: few rows would wait for one
    for (int m = 0; m < M; ++m) odds[m] = splat(0.0f);
    for (std::int64_t k = 0; k < w.k_padded; k += 2) {
        AF_PREFETCH(p + 16 * k + kAhead / 2);
        const F16 even = low_bf16(p + 16 * k), odd = high_bf16(p + 16 * k);
        for (int m = 0; m < M; ++m) {
            acc[m] = fma(even, splat(x[m * in.stride + k]), acc[m]);
            odds[m] = fma(odd, splat(x[m * in.stride + k + 1]), odds[m]);
        }
    }
    for (int m = 0; m < M; ++m) acc[m] = acc[m] + odds[m];
}

// Adds the integer products of the columns k0 .. k1 - 1 of the tile at p.
template <int M>
void dot_int8(const std::uint8_t* p, const std::int8_t* q, std::int64_t stride, std::int64_t k0,
              std::int64_t k1, I16 (&dots)[M]) {
    for (std::int64_t k = k0; k < k1; k += 4) {
        AF_PREFETCH(p + 16 * k + kAhead);
        const I16 column = load_bytes(p + 16 * k);
        for (int m = 0; m < M; ++m) dots[m] = dot_u8(dots[m], column, q + m * stride + k);
    }
}

template <int M>
void dot_int4(const std::uint8_t* p, const std::int8_t* q, std::int64_t stride, std::int64_t k0,
              std::int64_t k1, I16 (&dots)[M]) {
    I16 others[M];  // as above
    for (int m = 0; m < M; ++m) others[m] = zero_ints();
    for (std::int64_t k = k0; k < k1; k += 8) {
        AF_PREFETCH(p + 8 * k + kAhead);
        const I16 both = load_bytes(p + 8 * k);
        const I16 low = low_nibbles(both), high = high_nibbles(both);
        for (int m = 0; m < M; ++m) {
            const std::int8_t* x = q + m * stride + k;
            dots[m] = dot_u4(dots[m], low, x);
            others[m] = dot_u4(others[m], high, x + 4);
        }
    }
    for (int m = 0; m < M; ++m) dots[m] = dots[m] + others[m];
}

template <int M>
void accumulate_integer(const Packed& w, const Inputs& in, std::int64_t t, std::int64_t m0,
                        F16 (&acc)[M]) {
    const std::uint8_t* p = w.data + t * w.tile_bytes();
    const std::int8_t* q = in.q + m0 * in.stride;
    const std::int64_t groups = w.groups();
    const bool bytes = w.format == Format::int8;
    const float offset = bytes ? -128.0f : -8.0f;  // what packing added to every weight
    for (std::int64_t g = 0; g < groups; ++g) {
        I16 dots[M];
        for (int m = 0; m < M; ++m) dots[m] = zero_ints();
        const std::int64_t k0 = g * w.group, k1 = k0 + w.group;
        if (bytes) {
            dot_int8<M>(p, q, in.stride, k0, k1, dots);
        } else {
            dot_int4<M>(p, q, in.stride, k0, k1, dots);
        }
        const std::int64_t at = 16 * (t * groups + g);
        const F16 scale = bytes ? load(static_cast<const float*>(w.scales) + at)
                                : load_bf16(static_cast<const std::uint16_t*>(w.scales) + at);
        for (int m = 0; m < M; ++m) {
            const float shift = offset * static_cast<float>(in.sums[(m0 + m) * groups + g]);
            acc[m] = fma(to_float(dots[m]) + splat(shift), scale, acc[m]);
        }
    }
    for (int m = 0; m < M; ++m) acc[m] = acc[m] * splat(in.scale[m0 + m]);
}

inline void finish(F16 value, float* out, std::int64_t columns, Epilogue epilogue) {
    float lanes[16];
    if (epilogue == Epilogue::gelu) value = gelu(value);
    if (columns == 16) {
        store(out, epilogue == Epilogue::add ? load(out) + value : value);
        return;
    }
    store(lanes, value);
    for (std::int64_t i = 0; i < columns; ++i) {
        out[i] = epilogue == Epilogue::add ? out[i] + lanes[i] : lanes[i];
    }
}

// Outputs of tile t for the rows m0 .. m0 + M - 1.
template <int M>
void multiply_rows(const Packed& w, const Inputs& in, std::int64_t t, std::int64_t m0, float* out,
                   std::int64_t out_stride, Epilogue epilogue) {
    F16 acc[M];
    for (int m = 0; m < M; ++m) acc[m] = splat(0.0f);
    if (w.format == Format::f32) {
        accumulate_f32<M>(w, in, t, m0, acc);
    } else if (w.format == Format::bf16) {
        accumulate_bf16<M>(w, in, t, m0, acc);
    } else {
        accumulate_integer<M>(w, in, t, m0, acc);
    }
    const std::int64_t n0 = 16 * t, columns = w.n - n0 < 16 ? w.n - n0 : 16;
    float bias[16] = {};
    if (w.bias) std::memcpy(bias, w.bias + n0, static_cast<std::size_t>(columns) * sizeof(float));
    for (int m = 0; m < M; ++m) {
        const F16 value = w.bias ? acc[m] + load(bias) : acc[m];
        finish(value, out + (m0 + m) * out_stride + n0, columns, epilogue);
    }
}

void multiply(const Packed& w, const Inputs& in, float* out, std::int64_t out_stride,
              Epilogue epilogue, std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
        std::int64_t m = 0;
        // A tile stays in the cache while all rows pass it.
        for (; m + kRows <= in.rows; m += kRows) {
            multiply_rows<kRows>(w, in, t, m, out, out_stride, epilogue);
        }
        if (kRows > 4 && m + 4 <= in.rows) {
            multiply_rows<4>(w, in, t, m, out, out_stride, epilogue);
            m += 4;
        }
        if (m + 2 <= in.rows) {
            multiply_rows<2>(w, in, t, m, out, out_stride, epilogue);
            m += 2;
        }
        if (m < in.rows) multiply_rows<1>(w, in, t, m, out, out_stride, epilogue);
    }
}

void layer_norm(const float* x, const float* weight, const float* bias, float eps, std::int64_t n,
                std::int64_t padded, float* out) {
    F16 partial = splat(0.0f);
    float tail = 0.0f;
    std::int64_t i = 0;
    for (; i + 16 <= n; i += 16) partial = partial + load(x + i);
    for (; i < n; ++i) tail += x[i];
    const float mean = (sum(partial) + tail) / static_cast<float>(n);
    partial = splat(0.0f);
    tail = 0.0f;
    for (i = 0; i + 16 <= n; i += 16) {
        const F16 d = load(x + i) - splat(mean);
        partial = fma(d, d, partial);
    }
    for (; i < n; ++i) tail += (x[i] - mean) * (x[i] - mean);
    const float variance = (sum(partial) + tail) / static_cast<float>(n);
    const float inverse = 1.0f / std::sqrt(variance + eps);
    for (i = 0; i + 16 <= n; i += 16) {
        const F16 scaled = (load(x + i) - splat(mean)) * splat(inverse) * load(weight + i);
        store(out + i, bias ? scaled + load(bias + i) : scaled);
    }
    for (; i < n; ++i) {
        out[i] = (x[i] - mean) * inverse * weight[i] + (bias ? bias[i] : 0.0f);
    }
    for (; i < padded; ++i) out[i] = 0.0f;
}

void quantize(const float* x, std::int64_t n, std::int64_t group, std::int8_t* q, float* scale,
              std::int32_t* sums) {
    F16 top = splat(0.0f);
    for (std::int64_t i = 0; i < n; i += 16) top = max(top, abs(load(x + i)));
    const float peak = largest(top);
    *scale = peak / 127.0f;
    const float inverse = peak > 0.0f ? 127.0f / peak : 0.0f;
    for (std::int64_t g = 0; g < n / group; ++g) {
        I16 total = zero_ints();
        for (std::int64_t i = g * group; i < (g + 1) * group; i += 16) {
            total = total + store_rounded(q + i, load(x + i) * splat(inverse));
        }
        sums[g] = sum(total);
    }
}

// out[d .. d + 16 N) = sum over positions of scores[p] * values[p][d ..]
template <int N>
void weigh_values(const void* values, bool half, std::int64_t begin, std::int64_t end,
                  std::int64_t head_dim, std::int64_t d, const float* scores, float* out) {
    F16 acc[N];
    for (int j = 0; j < N; ++j) acc[j] = splat(0.0f);
    for (std::int64_t p = begin; p < end; ++p) {
        const F16 s = splat(scores[p - begin]);
        const std::int64_t at = p * head_dim + d;
        for (int j = 0; j < N; ++j) {
            const F16 v = half ? load_bf16(static_cast<const std::uint16_t*>(values) + at + 16 * j)
                               : load(static_cast<const float*>(values) + at + 16 * j);
            acc[j] = fma(v, s, acc[j]);
        }
    }
    for (int j = 0; j < N; ++j) store(out + d + 16 * j, acc[j]);
}

// Scores of the sixteen positions from p0 on.
inline F16 score_tile(const float* q, const void* keys, bool half, std::int64_t p0,
                      std::int64_t head_dim) {
    // Four sums, because one would wait for itself at every step.
    F16 s[4] = {splat(0.0f), splat(0.0f), splat(0.0f), splat(0.0f)};
    if (half) {
        const auto* k = static_cast<const std::uint16_t*>(keys) + p0 * head_dim;
        for (std::int64_t d = 0; d < head_dim; d += 4) {
            s[0] = fma(low_bf16(k + 16 * d), splat(q[d]), s[0]);
            s[1] = fma(high_bf16(k + 16 * d), splat(q[d + 1]), s[1]);
            s[2] = fma(low_bf16(k + 16 * (d + 2)), splat(q[d + 2]), s[2]);
            s[3] = fma(high_bf16(k + 16 * (d + 2)), splat(q[d + 3]), s[3]);
        }
    } else {
        const float* k = static_cast<const float*>(keys) + p0 * head_dim;
        for (std::int64_t d = 0; d < head_dim; d += 4) {
            for (int j = 0; j < 4; ++j) s[j] = fma(load(k + 16 * (d + j)), splat(q[d + j]), s[j]);
        }
    }
    return (s[0] + s[1]) + (s[2] + s[3]);
}

void attend(const float* q, const void* keys, const void* values, bool half, std::int64_t begin,
            std::int64_t end, std::int64_t head_dim, float* scores, float* out, Part* part) {
    const F16 scale = splat(1.0f / std::sqrt(static_cast<float>(head_dim)));
    float top = -INFINITY, total = 0.0f;
    for (std::int64_t p0 = begin; p0 < end; p0 += 16) {
        float* tile = scores + (p0 - begin);
        store(tile, score_tile(q, keys, half, p0, head_dim) * scale);
        const std::int64_t count = end - p0 < 16 ? end - p0 : 16;
        for (std::int64_t i = 0; i < count; ++i) top = tile[i] > top ? tile[i] : top;
        for (std::int64_t i = count; i < 16; ++i) tile[i] = -INFINITY;
    }
    for (std::int64_t p0 = begin; p0 < end; p0 += 16) {
        float* tile = scores + (p0 - begin);
        store(tile, exp(load(tile) - splat(top)));
        const std::int64_t count = end - p0 < 16 ? end - p0 : 16;
        for (std::int64_t i = 0; i < count; ++i) total += tile[i];
    }
    std::int64_t d = 0;
    for (; d + 64 <= head_dim; d += 64) {
        weigh_values<4>(values, half, begin, end, head_dim, d, scores, out);
    }
    for (; d < head_dim; d += 16) {
        weigh_values<1>(values, half, begin, end, head_dim, d, scores, out);
    }
    *part = {top, total};
}

void merge(const float* parts_out, const Part* parts, std::int64_t count, std::int64_t pads,
           std::int64_t head_dim, float* out) {
    float top = pads > 0 ? 0.0f : -INFINITY;
    for (std::int64_t i = 0; i < count; ++i) top = parts[i].top > top ? parts[i].top : top;
    float total = pads > 0 ? static_cast<float>(pads) * std::exp(-top) : 0.0f;
    for (std::int64_t i = 0; i < count; ++i) {
        total += parts[i].total * std::exp(parts[i].top - top);
    }
    const float inverse = total > 0.0f ? 1.0f / total : 0.0f;
    for (std::int64_t d = 0; d < head_dim; d += 16) {
        F16 sum = splat(0.0f);
        for (std::int64_t i = 0; i < count; ++i) {
            const F16 weight = splat(std::exp(parts[i].top - top) * inverse);
            sum = fma(load(parts_out + i * head_dim + d), weight, sum);
        }
        store(out + d, sum);
    }
}

void softmax(const float* logits, std::int64_t n, float temperature, float* probs) {
    float top = -INFINITY;
    for (std::int64_t i = 0; i < n; ++i) {
        probs[i] = logits[i] / temperature;
        top = probs[i] > top ? probs[i] : top;
    }
    double total = 0.0;
    for (std::int64_t i = 0; i < n; ++i) {
        probs[i] = std::exp(probs[i] - top);
        total += probs[i];
    }
    const auto inverse = static_cast<float>(1.0 / total);
    for (std::int64_t i = 0; i < n; ++i) probs[i] *= inverse;
}

}  // namespace audiogen_fast::AF_ISA

#define AF_STRING(x) #x
#define AF_NAME(x) AF_STRING(x)
#define AF_CONCAT(a, b) a##b
#define AF_TABLE(isa) AF_CONCAT(kernels_, isa)

namespace audiogen_fast {
extern const Kernels AF_TABLE(AF_ISA);
const Kernels AF_TABLE(AF_ISA) = {
    AF_NAME(AF_ISA), AF_ISA::multiply, AF_ISA::layer_norm, AF_ISA::quantize,
    AF_ISA::attend,  AF_ISA::merge,    AF_ISA::softmax,
};
}  // namespace audiogen_fast
