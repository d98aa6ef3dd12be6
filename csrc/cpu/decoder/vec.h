// Sixteen float32 lanes and the few operations the decoder needs, for the instruction set this file
// is compiled for: AF_AVX512 (with or without AF_VNNI), AF_AVX2, or plain C++ otherwise.
//
// Everything is in a namespace of its own per instruction set, so that no function compiled for one
// can be merged with its twin of another by the linker.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(AF_AVX512) || defined(AF_AVX2)
#include <immintrin.h>
#endif

#if defined(AF_AVX512) && defined(AF_VNNI)
#define AF_ISA avx512_vnni
#elif defined(AF_AVX512)
#define AF_ISA avx512
#elif defined(AF_AVX2)
#define AF_ISA avx2
#else
#define AF_ISA portable
#endif

#if defined(__GNUC__)
#define AF_PREFETCH(address) __builtin_prefetch(address)
#else
#define AF_PREFETCH(address) (void)(address)
#endif

namespace audiogen_fast::AF_ISA {

#if defined(AF_AVX512)

// Rows of activations whose sums a product keeps in registers.
constexpr int kRows = 8;

struct F16 {
    __m512 v;
};
struct I16 {
    __m512i v;
};

inline F16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void store(float* p, F16 a) { _mm512_storeu_ps(p, a.v); }
inline F16 splat(float a) { return {_mm512_set1_ps(a)}; }
inline F16 fma(F16 a, F16 b, F16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline F16 operator+(F16 a, F16 b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F16 operator-(F16 a, F16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F16 operator*(F16 a, F16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline F16 operator/(F16 a, F16 b) { return {_mm512_div_ps(a.v, b.v)}; }
inline F16 max(F16 a, F16 b) { return {_mm512_max_ps(a.v, b.v)}; }
inline F16 min(F16 a, F16 b) { return {_mm512_min_ps(a.v, b.v)}; }
inline F16 round(F16 a) { return {_mm512_roundscale_ps(a.v, 8)}; }
inline F16 abs(F16 a) { return {_mm512_abs_ps(a.v)}; }
// a * 2^n for whole n
inline F16 scale2(F16 a, F16 n) { return {_mm512_scalef_ps(a.v, n.v)}; }
inline float sum(F16 a) { return _mm512_reduce_add_ps(a.v); }
inline float largest(F16 a) { return _mm512_reduce_max_ps(a.v); }
// a < b ? x : y
inline F16 where_less(F16 a, F16 b, F16 x, F16 y) {
    return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ), y.v, x.v)};
}
inline F16 with_sign_of(F16 magnitude, F16 sign) {
    const __m512i bit = _mm512_and_si512(_mm512_castps_si512(sign.v),
                                         _mm512_set1_epi32(static_cast<int>(0x80000000)));
    return {_mm512_castsi512_ps(_mm512_or_si512(_mm512_castps_si512(magnitude.v), bit))};
}

inline I16 zero_ints() { return {_mm512_setzero_si512()}; }
inline I16 operator+(I16 a, I16 b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline std::int32_t sum(I16 a) { return _mm512_reduce_add_epi32(a.v); }
// Rounds to whole numbers (ties to even), which must fit a byte, and stores them as bytes.
inline I16 store_rounded(std::int8_t* p, F16 a) {
    const __m512i whole = _mm512_cvtps_epi32(a.v);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(whole));
    return {whole};
}
inline F16 to_float(I16 a) { return {_mm512_cvtepi32_ps(a.v)}; }
inline I16 load_bytes(const std::uint8_t* p) { return {_mm512_loadu_si512(p)}; }
inline I16 low_nibbles(I16 a) { return {_mm512_and_si512(a.v, _mm512_set1_epi8(15))}; }
inline I16 high_nibbles(I16 a) {
    return {_mm512_and_si512(_mm512_srli_epi16(a.v, 4), _mm512_set1_epi8(15))};
}
inline __m512i splat4(const std::int8_t* x) {
    std::int32_t four;
    std::memcpy(&four, x, 4);
    return _mm512_set1_epi32(four);
}
#if defined(AF_VNNI)
// acc + sum over the four bytes of each lane of w (unsigned) * x (signed, the same for all lanes)
inline I16 dot_u8(I16 acc, I16 w, const std::int8_t* x) {
    return {_mm512_dpbusd_epi32(acc.v, w.v, splat4(x))};
}
inline I16 dot_u4(I16 acc, I16 w, const std::int8_t* x) { return dot_u8(acc, w, x); }
#else
// The products of two nibbles and bytes fit 16 bits, so pairs can be summed there.
inline I16 dot_u4(I16 acc, I16 w, const std::int8_t* x) {
    const __m512i pairs = _mm512_maddubs_epi16(w.v, splat4(x));
    return {_mm512_add_epi32(acc.v, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)))};
}
// Whole bytes would overflow, so their two halves go one after the other.
inline I16 dot_u8(I16 acc, I16 w, const std::int8_t* x) {
    const I16 high = dot_u4(zero_ints(), high_nibbles(w), x);
    return dot_u4({_mm512_add_epi32(acc.v, _mm512_slli_epi32(high.v, 4))}, low_nibbles(w), x);
}
#endif
// Sixteen bfloat16 pairs: the low and the high half of every lane, as float32.
inline F16 low_bf16(const std::uint16_t* p) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(p), 16))};
}
inline F16 high_bf16(const std::uint16_t* p) {
    const __m512i mask = _mm512_set1_epi32(static_cast<int>(0xffff0000));
    return {_mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(p), mask))};
}
inline F16 load_bf16(const std::uint16_t* p) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16))};
}

#elif defined(AF_AVX2)

constexpr int kRows = 4;

struct F16 {
    __m256 a, b;
};
struct I16 {
    __m256i a, b;
};

inline F16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, F16 x) {
    _mm256_storeu_ps(p, x.a);
    _mm256_storeu_ps(p + 8, x.b);
}
inline F16 splat(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline F16 fma(F16 x, F16 y, F16 z) {
    return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
#define AF_BINARY(name, intrinsic) \
    inline F16 name(F16 x, F16 y) { return {intrinsic(x.a, y.a), intrinsic(x.b, y.b)}; }
AF_BINARY(operator+, _mm256_add_ps)
AF_BINARY(operator-, _mm256_sub_ps)
AF_BINARY(operator*, _mm256_mul_ps)
AF_BINARY(operator/, _mm256_div_ps)
AF_BINARY(max, _mm256_max_ps)
AF_BINARY(min, _mm256_min_ps)
#undef AF_BINARY
inline F16 round(F16 x) { return {_mm256_round_ps(x.a, 8), _mm256_round_ps(x.b, 8)}; }
inline F16 abs(F16 x) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
}
inline __m256 scale2_half(__m256 a, __m256 n) {
    const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_mul_ps(a, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
}
inline F16 scale2(F16 x, F16 n) { return {scale2_half(x.a, n.a), scale2_half(x.b, n.b)}; }
inline float sum(F16 x) {
    alignas(32) float v[8];
    _mm256_store_ps(v, _mm256_add_ps(x.a, x.b));
    return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
}
inline float largest(F16 x) {
    alignas(32) float v[8];
    _mm256_store_ps(v, _mm256_max_ps(x.a, x.b));
    float top = v[0];
    for (int i = 1; i < 8; ++i) top = v[i] > top ? v[i] : top;
    return top;
}

inline F16 where_less(F16 a, F16 b, F16 x, F16 y) {
    return {_mm256_blendv_ps(y.a, x.a, _mm256_cmp_ps(a.a, b.a, _CMP_LT_OQ)),
            _mm256_blendv_ps(y.b, x.b, _mm256_cmp_ps(a.b, b.b, _CMP_LT_OQ))};
}
inline F16 with_sign_of(F16 magnitude, F16 sign) {
    const __m256 bit = _mm256_set1_ps(-0.0f);
    return {_mm256_or_ps(magnitude.a, _mm256_and_ps(sign.a, bit)),
            _mm256_or_ps(magnitude.b, _mm256_and_ps(sign.b, bit))};
}

inline I16 zero_ints() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
inline I16 operator+(I16 x, I16 y) {
    return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)};
}
inline std::int32_t sum(I16 x) {
    alignas(32) std::int32_t v[8];
    _mm256_store_si256(reinterpret_cast<__m256i*>(v), _mm256_add_epi32(x.a, x.b));
    std::int32_t total = 0;
    for (const std::int32_t part : v) total += part;
    return total;
}
inline I16 store_rounded(std::int8_t* p, F16 x) {
    const I16 whole = {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)};
    // Packing works within halves of a register; the permutation undoes that.
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(whole.a, whole.b), 0xd8);
    const __m256i bytes = _mm256_permute4x64_epi64(_mm256_packs_epi16(words, words), 0xd8);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(bytes));
    return whole;
}
inline F16 to_float(I16 x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
inline I16 load_bytes(const std::uint8_t* p) {
    const auto* q = reinterpret_cast<const __m256i*>(p);
    return {_mm256_loadu_si256(q), _mm256_loadu_si256(q + 1)};
}
inline I16 low_nibbles(I16 x) {
    const __m256i mask = _mm256_set1_epi8(15);
    return {_mm256_and_si256(x.a, mask), _mm256_and_si256(x.b, mask)};
}
inline I16 high_nibbles(I16 x) {
    return low_nibbles({_mm256_srli_epi16(x.a, 4), _mm256_srli_epi16(x.b, 4)});
}
inline __m256i dot_half(__m256i acc, __m256i w, __m256i x) {
    const __m256i pairs = _mm256_maddubs_epi16(w, x);
    return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
// The products of two nibbles and bytes fit 16 bits, so pairs can be summed there.
inline I16 dot_u4(I16 acc, I16 w, const std::int8_t* x) {
    std::int32_t four;
    std::memcpy(&four, x, 4);
    const __m256i xs = _mm256_set1_epi32(four);
    return {dot_half(acc.a, w.a, xs), dot_half(acc.b, w.b, xs)};
}
// Whole bytes would overflow, so their two halves go one after the other.
inline I16 dot_u8(I16 acc, I16 w, const std::int8_t* x) {
    const I16 high = dot_u4(zero_ints(), high_nibbles(w), x);
    acc.a = _mm256_add_epi32(acc.a, _mm256_slli_epi32(high.a, 4));
    acc.b = _mm256_add_epi32(acc.b, _mm256_slli_epi32(high.b, 4));
    return dot_u4(acc, low_nibbles(w), x);
}
inline F16 low_bf16(const std::uint16_t* p) {
    const auto* q = reinterpret_cast<const __m256i*>(p);
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_loadu_si256(q), 16)),
            _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_loadu_si256(q + 1), 16))};
}
inline F16 high_bf16(const std::uint16_t* p) {
    const auto* q = reinterpret_cast<const __m256i*>(p);
    const __m256i mask = _mm256_set1_epi32(static_cast<int>(0xffff0000));
    return {_mm256_castsi256_ps(_mm256_and_si256(_mm256_loadu_si256(q), mask)),
            _mm256_castsi256_ps(_mm256_and_si256(_mm256_loadu_si256(q + 1), mask))};
}
inline __m256 load_bf16_half(const std::uint16_t* p) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}
inline F16 load_bf16(const std::uint16_t* p) {
    return {load_bf16_half(p), load_bf16_half(p + 8)};
}

#else

constexpr int kRows = 4;

struct F16 {
    float v[16];
};
struct I16 {
    std::int32_t v[16];
};

#define AF_EACH(expression)                            \
    F16 r;                                             \
    for (int i = 0; i < 16; ++i) r.v[i] = (expression); \
    return r
inline F16 load(const float* p) { AF_EACH(p[i]); }
inline void store(float* p, F16 a) { std::memcpy(p, a.v, sizeof a.v); }
inline F16 splat(float a) { AF_EACH(a); }
inline F16 fma(F16 a, F16 b, F16 c) { AF_EACH(a.v[i] * b.v[i] + c.v[i]); }
inline F16 operator+(F16 a, F16 b) { AF_EACH(a.v[i] + b.v[i]); }
inline F16 operator-(F16 a, F16 b) { AF_EACH(a.v[i] - b.v[i]); }
inline F16 operator*(F16 a, F16 b) { AF_EACH(a.v[i] * b.v[i]); }
inline F16 operator/(F16 a, F16 b) { AF_EACH(a.v[i] / b.v[i]); }
inline F16 max(F16 a, F16 b) { AF_EACH(a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }
inline F16 min(F16 a, F16 b) { AF_EACH(a.v[i] < b.v[i] ? a.v[i] : b.v[i]); }
inline F16 round(F16 a) { AF_EACH(std::nearbyint(a.v[i])); }
inline F16 abs(F16 a) { AF_EACH(std::fabs(a.v[i])); }
inline F16 scale2(F16 a, F16 n) { AF_EACH(std::ldexp(a.v[i], static_cast<int>(n.v[i]))); }
inline float sum(F16 a) {
    float total = 0.0f;
    for (int i = 0; i < 16; ++i) total += a.v[i];
    return total;
}
inline float largest(F16 a) {
    float top = a.v[0];
    for (int i = 1; i < 16; ++i) top = a.v[i] > top ? a.v[i] : top;
    return top;
}

inline F16 where_less(F16 a, F16 b, F16 x, F16 y) { AF_EACH(a.v[i] < b.v[i] ? x.v[i] : y.v[i]); }
inline F16 with_sign_of(F16 magnitude, F16 sign) {
    AF_EACH(std::copysign(magnitude.v[i], sign.v[i]));
}

inline I16 zero_ints() { return I16{}; }
inline I16 operator+(I16 a, I16 b) {
    for (int i = 0; i < 16; ++i) a.v[i] += b.v[i];
    return a;
}
inline std::int32_t sum(I16 a) {
    std::int32_t total = 0;
    for (const std::int32_t part : a.v) total += part;
    return total;
}
inline I16 store_rounded(std::int8_t* p, F16 a) {
    I16 whole;
    for (int i = 0; i < 16; ++i) {
        whole.v[i] = static_cast<std::int32_t>(std::nearbyint(a.v[i]));
        p[i] = static_cast<std::int8_t>(whole.v[i]);
    }
    return whole;
}
inline F16 to_float(I16 a) { AF_EACH(static_cast<float>(a.v[i])); }
inline I16 load_bytes(const std::uint8_t* p) {
    I16 r;
    std::memcpy(r.v, p, sizeof r.v);
    return r;
}
inline I16 low_nibbles(I16 a) {
    for (int i = 0; i < 16; ++i) a.v[i] &= 0x0f0f0f0f;
    return a;
}
inline I16 high_nibbles(I16 a) {
    for (int i = 0; i < 16; ++i) a.v[i] = (a.v[i] >> 4) & 0x0f0f0f0f;
    return a;
}
inline I16 dot_u8(I16 acc, I16 w, const std::int8_t* x) {
    for (int i = 0; i < 16; ++i) {
        std::uint8_t four[4];
        std::memcpy(four, &w.v[i], 4);
        for (int j = 0; j < 4; ++j) acc.v[i] += four[j] * x[j];
    }
    return acc;
}
inline I16 dot_u4(I16 acc, I16 w, const std::int8_t* x) { return dot_u8(acc, w, x); }
inline float bf16_to_float(std::uint16_t half) {
    const std::uint32_t bits = static_cast<std::uint32_t>(half) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
inline F16 low_bf16(const std::uint16_t* p) { AF_EACH(bf16_to_float(p[2 * i])); }
inline F16 high_bf16(const std::uint16_t* p) { AF_EACH(bf16_to_float(p[2 * i + 1])); }
inline F16 load_bf16(const std::uint16_t* p) { AF_EACH(bf16_to_float(p[i])); }
#undef AF_EACH

#endif

// exp(x) to about one unit in the last place: x = n log 2 + r, a polynomial for exp(r), times 2^n.
inline F16 exp(F16 x) {
    x = min(max(x, splat(-87.3f)), splat(88.0f));
    const F16 n = round(x * splat(1.44269504f));
    F16 r = fma(n, splat(-0.693359375f), x);
    r = fma(n, splat(2.12194440e-4f), r);
    // Taylor coefficients of exp; |r| <= log(2) / 2 leaves an error below 2^-24.
    F16 p = splat(1.0f / 5040.0f);
    p = fma(p, r, splat(1.0f / 720.0f));
    p = fma(p, r, splat(1.0f / 120.0f));
    p = fma(p, r, splat(1.0f / 24.0f));
    p = fma(p, r, splat(1.0f / 6.0f));
    p = fma(p, r, splat(0.5f));
    p = fma(p, r, splat(1.0f));
    p = fma(p, r, splat(1.0f));
    return scale2(p, n);
}

}  // namespace audiogen_fast::AF_ISA
