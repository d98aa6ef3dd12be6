// The inner loop of matrix products in float32 for AVX-512, and what brings matrices into the order
// in which it reads them.
//
// A product is made of tiles of 8 rows and up to 48 columns, whose 24 sums stay in registers: for
// each k, three vectors of the right matrix and eight numbers of the left one are read, for 24
// multiply-adds (Goto and van de Geijn, "Anatomy of high-performance matrix multiplication", 2008).
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>

namespace audiogen_fast::train {

constexpr std::int64_t kRows = 8;      // of a tile
constexpr std::int64_t kLanes = 16;    // of a vector
constexpr std::int64_t kColumns = 48;  // of a tile

// A matrix in memory: element (i, j) is at data[i * row + j * column]. One of the strides is 1.
struct View {
    const float* data;
    std::int64_t row, column;

    const float* at(std::int64_t i, std::int64_t j) const { return data + i * row + j * column; }
    View part(std::int64_t i, std::int64_t j) const { return {at(i, j), row, column}; }
    View transposed() const { return {data, column, row}; }
};

inline std::int64_t round_up(std::int64_t n, std::int64_t to) { return (n + to - 1) / to * to; }

inline __mmask16 first_lanes(std::int64_t n) {
    return n >= kLanes ? __mmask16(0xffff) : __mmask16((1u << n) - 1);
}

// out = alpha a b, plus what out holds with `add`. a: [k][8], b: [k][16 V], packed; of the tile the
// first `rows` rows and `columns` columns are written.
template <int V>
inline void tile(const float* a, const float* b, std::int64_t k, float alpha, bool add, float* out,
                 std::int64_t out_row, std::int64_t rows, std::int64_t columns) {
    __m512 sums[kRows][V];
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 3
        for (int j = 0; j < V; ++j) sums[i][j] = _mm512_setzero_ps();
    }
    if (rows == kRows) {
#pragma GCC unroll 8
        for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 3
            for (int j = 0; j < V; ++j) __builtin_prefetch(out + i * out_row + j * kLanes, 1);
        }
    }
    for (std::int64_t p = 0; p < k; ++p) {
        __m512 right[V];
#pragma GCC unroll 3
        for (int j = 0; j < V; ++j) right[j] = _mm512_loadu_ps(b + j * kLanes);
#pragma GCC unroll 8
        for (int i = 0; i < kRows; ++i) {
            const __m512 left = _mm512_set1_ps(a[i]);
#pragma GCC unroll 3
            for (int j = 0; j < V; ++j) sums[i][j] = _mm512_fmadd_ps(left, right[j], sums[i][j]);
        }
        a += kRows;
        b += V * kLanes;
    }
    const __m512 factor = _mm512_set1_ps(alpha);
    const __mmask16 last = first_lanes(columns - (V - 1) * kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
        if (i < rows) {
#pragma GCC unroll 3
            for (int j = 0; j < V; ++j) {
                float* p = out + i * out_row + j * kLanes;
                const __mmask16 mask = j == V - 1 ? last : __mmask16(0xffff);
                const __m512 old = add ? _mm512_maskz_loadu_ps(mask, p) : _mm512_setzero_ps();
                _mm512_mask_storeu_ps(p, mask, _mm512_fmadd_ps(sums[i][j], factor, old));
            }
        }
    }
}

// The same for a number of columns that is known when it runs; b: [k][columns rounded up to 16].
inline void tile_of(const float* a, const float* b, std::int64_t k, float alpha, bool add,
                    float* out, std::int64_t out_row, std::int64_t rows, std::int64_t columns) {
    if (columns > 2 * kLanes) {
        tile<3>(a, b, k, alpha, add, out, out_row, rows, columns);
    } else if (columns > kLanes) {
        tile<2>(a, b, k, alpha, add, out, out_row, rows, columns);
    } else {
        tile<1>(a, b, k, alpha, add, out, out_row, rows, columns);
    }
}

// rows[0..15] becomes its transpose.
inline void transpose16(__m512 (&r)[16]) {
    __m512 t[16];
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
        const __m512d a = _mm512_castps_pd(t[i]), b = _mm512_castps_pd(t[i + 1]);
        const __m512d c = _mm512_castps_pd(t[i + 2]), d = _mm512_castps_pd(t[i + 3]);
        r[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
        r[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
        r[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
        r[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        t[i] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0xdd);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        r[i] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0xdd);
        r[i + 4] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0x88);
        r[i + 12] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0xdd);
    }
}

// Sixteen rows of `m`, whose rows are contiguous, from column j on: r[c] is column j + c. Zeros
// where there are only `rows` rows and `columns` columns.
inline void load_columns(View m, std::int64_t j, std::int64_t rows, std::int64_t columns,
                         __m512 (&r)[16]) {
    const __mmask16 mask = first_lanes(columns);
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) {
        r[i] = i < rows ? _mm512_maskz_loadu_ps(mask, m.at(i, j)) : _mm512_setzero_ps();
    }
    transpose16(r);
}

// Left matrix [rows, k] into panels of 8 rows, each [k][8], zeros past `rows`.
inline void pack_left(View a, std::int64_t rows, std::int64_t k, float* out) {
    if (a.column == 1) {
        for (std::int64_t i = 0; i < rows; i += 2 * kRows) {
            float* panel = out + i * k;
            for (std::int64_t p = 0; p < k; p += kLanes) {
                const std::int64_t n = std::min(kLanes, k - p);
                __m512 r[16];
                load_columns(a.part(i, 0), p, rows - i, n, r);
#pragma GCC unroll 16
                for (int c = 0; c < 16; ++c) {
                    if (c >= n) break;
                    float* at = panel + (p + c) * kRows;
                    _mm256_storeu_ps(at, _mm512_castps512_ps256(r[c]));
                    if (rows - i > kRows) {
                        _mm256_storeu_ps(at + kRows * k, _mm512_extractf32x8_ps(r[c], 1));
                    }
                }
            }
        }
        return;
    }
    // Two panels at a time, in blocks of k: whole lines of memory are read, while they are near.
    for (std::int64_t p = 0; p < k; p += kLanes) {
        const std::int64_t end = std::min(p + kLanes, k);
        for (std::int64_t i = 0; i < rows; i += 2 * kRows) {
            const __mmask16 mask = first_lanes(rows - i);
            for (std::int64_t q = p; q < end; ++q) {
                const __m512 column = _mm512_maskz_loadu_ps(mask, a.at(i, q));
                float* at = out + i * k + q * kRows;
                _mm256_storeu_ps(at, _mm512_castps512_ps256(column));
                if (rows - i > kRows) {
                    _mm256_storeu_ps(at + kRows * k, _mm512_extractf32x8_ps(column, 1));
                }
            }
        }
    }
}

// Columns [first, last) of the right matrix [k, n], first a multiple of 48, into panels of 48
// columns, each [k][48], panel j / 48 at out + j k; the last panel has its own number of columns,
// rounded up to 16, and zeros past them.
inline void pack_right(View b, std::int64_t k, std::int64_t first, std::int64_t last, float* out) {
    for (std::int64_t j = first; j < last; j += kColumns) {
        const std::int64_t columns = std::min(kColumns, last - j), width = round_up(columns, kLanes);
        float* panel = out + j * k;
        if (b.row != 1) {
            for (std::int64_t p = 0; p < k; ++p) {
                for (std::int64_t i = 0; i < columns; i += kLanes) {
                    const __mmask16 mask = first_lanes(columns - i);
                    _mm512_storeu_ps(panel + p * width + i,
                                     _mm512_maskz_loadu_ps(mask, b.at(p, j + i)));
                }
            }
            continue;
        }
        for (std::int64_t i = 0; i < columns; i += kLanes) {
            const std::int64_t n = std::min(kLanes, columns - i);
            for (std::int64_t p = 0; p < k; p += kLanes) {
                const std::int64_t depth = std::min(kLanes, k - p);
                __m512 r[16];
                load_columns(b.part(0, j + i).transposed(), p, n, depth, r);
#pragma GCC unroll 16
                for (int c = 0; c < 16; ++c) {
                    if (c < depth) _mm512_storeu_ps(panel + (p + c) * width + i, r[c]);
                }
            }
        }
    }
}

// A thread's scratch memory, aligned to 64 bytes, for a task of its own or for all tasks of a call.
// It grows, and stays until the thread ends, so that it is not cleared for every call.
enum class Scratch { own, shared };
float* scratch(Scratch which, std::int64_t floats);

}  // namespace audiogen_fast::train
