// Attention of training, forward and backward, one head of one sound after another.
//
// 48 queries are worked on at a time, one in each lane, against all the keys that they may see: so
// no sum goes across lanes, and a score matrix [keys][48] is in the order in which the next product
// reads it. It fits the second cache of a core, and nothing of it is kept for the backward pass but
// the logarithm of each query's denominator (Dao et al., "FlashAttention", 2022).
#include <cmath>
#include <initializer_list>
#include <type_traits>

#include "audiogen_fast/training.h"
#include "parallel.h"
#include "tile_avx512.h"

namespace audiogen_fast::train {
namespace {

// exp(x) to about one unit in the last place, also of NaN; at least 1e-38.
inline __m512 exp(__m512 x) {
    // The second operand of a maximum is what comes out where one is not a number.
    x = _mm512_min_ps(_mm512_set1_ps(88.0f), _mm512_max_ps(_mm512_set1_ps(-87.3f), x));
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 8);
    __m512 r = _mm512_fmadd_ps(n, _mm512_set1_ps(-0.693359375f), x);
    r = _mm512_fmadd_ps(n, _mm512_set1_ps(2.12194440e-4f), r);
    // Taylor coefficients; |r| <= log(2) / 2 leaves an error below 2^-24.
    __m512 p = _mm512_set1_ps(1.0f / 5040.0f);
    for (const float c : {1.0f / 720.0f, 1.0f / 120.0f, 1.0f / 24.0f, 1.0f / 6.0f, 0.5f, 1.0f, 1.0f}) {
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(c));
    }
    return _mm512_scalef_ps(p, n);
}

// Lanes of vector j whose query is not before the key, `ahead` places after the first query.
inline __mmask16 seen(std::int64_t ahead, int j) {
    const std::int64_t hidden = std::clamp<std::int64_t>(ahead - j * kLanes, 0, kLanes);
    return static_cast<__mmask16>(0xffffu << hidden);
}

// scores [keys][16 V] becomes exp(score - largest of the query); the sums, and the logarithm of the
// softmax's denominator, to which `pads` scores of zero belong. Keys from `first` on are hidden from
// the queries before them.
template <int V>
void softmax(float* scores, std::int64_t keys, std::int64_t first, std::int64_t pads, float* sums,
             float* log_sums) {
    __m512 top[V], total[V];
    const float start = pads > 0 || keys == 0 ? 0.0f : -__builtin_inff();
    for (int j = 0; j < V; ++j) {
        top[j] = _mm512_set1_ps(start);
        total[j] = _mm512_setzero_ps();
    }
    for (std::int64_t key = 0; key < keys; ++key) {
        for (int j = 0; j < V; ++j) {
            const __m512 score = _mm512_loadu_ps(scores + (key * V + j) * kLanes);
            top[j] = _mm512_mask_max_ps(top[j], seen(key - first, j), top[j], score);
        }
    }
    // Nothing at all to attend to is one pad: the result is zero.
    const __m512 count = _mm512_set1_ps(static_cast<float>(pads > 0 || keys > 0 ? pads : 1));
    for (int j = 0; j < V && (pads > 0 || keys == 0); ++j) {
        total[j] = _mm512_mul_ps(count, exp(_mm512_sub_ps(_mm512_setzero_ps(), top[j])));
    }
    for (std::int64_t key = 0; key < keys; ++key) {
        for (int j = 0; j < V; ++j) {
            float* p = scores + (key * V + j) * kLanes;
            const __m512 value = _mm512_maskz_mov_ps(
                seen(key - first, j), exp(_mm512_sub_ps(_mm512_loadu_ps(p), top[j])));
            total[j] = _mm512_add_ps(total[j], value);
            _mm512_storeu_ps(p, value);
        }
    }
    for (int j = 0; j < V; ++j) {
        _mm512_storeu_ps(sums + j * kLanes, total[j]);
        alignas(64) float tops[kLanes];
        _mm512_store_ps(tops, top[j]);
        for (int i = 0; i < kLanes; ++i) {
            log_sums[j * kLanes + i] = tops[i] + std::log(sums[j * kLanes + i]);
        }
    }
}

// scores becomes the weights p = exp(score - log_sums), and `grads`, the gradients of the weights,
// those of the scores: p (grad - sum of p grad over the keys) scale.
//
// A large log_sum is rounded to few digits, which scales all weights of a query alike; so they are
// divided by what they sum to.
template <int V>
void softmax_backward(float* scores, float* grads, std::int64_t keys, std::int64_t first,
                      std::int64_t pads, const float* log_sums, float scale) {
    __m512 shift[V], sum[V], total[V];
    const __m512 count = _mm512_set1_ps(static_cast<float>(pads));
    for (int j = 0; j < V; ++j) {
        shift[j] = _mm512_loadu_ps(log_sums + j * kLanes);
        sum[j] = _mm512_mul_ps(count, exp(_mm512_sub_ps(_mm512_setzero_ps(), shift[j])));
        total[j] = _mm512_setzero_ps();
    }
    for (std::int64_t key = 0; key < keys; ++key) {
        for (int j = 0; j < V; ++j) {
            float* p = scores + (key * V + j) * kLanes;
            const __mmask16 mask = seen(key - first, j);
            const __m512 weight =
                _mm512_maskz_mov_ps(mask, exp(_mm512_sub_ps(_mm512_loadu_ps(p), shift[j])));
            const __m512 grad = _mm512_loadu_ps(grads + (key * V + j) * kLanes);
            sum[j] = _mm512_add_ps(sum[j], weight);
            total[j] = _mm512_mask3_fmadd_ps(weight, grad, total[j], mask);
            _mm512_storeu_ps(p, weight);
        }
    }
    const __m512 factor = _mm512_set1_ps(scale);
    for (int j = 0; j < V; ++j) {
        sum[j] = _mm512_div_ps(_mm512_set1_ps(1.0f), sum[j]);
        total[j] = _mm512_mul_ps(total[j], sum[j]);
    }
    for (std::int64_t key = 0; key < keys; ++key) {
        for (int j = 0; j < V; ++j) {
            const std::int64_t at = (key * V + j) * kLanes;
            const __m512 centred = _mm512_sub_ps(_mm512_loadu_ps(grads + at), total[j]);
            const __m512 weight = _mm512_mul_ps(_mm512_loadu_ps(scores + at), sum[j]);
            _mm512_storeu_ps(scores + at, weight);
            _mm512_storeu_ps(grads + at, _mm512_maskz_mul_ps(seen(key - first, j),
                                                             _mm512_mul_ps(weight, factor), centred));
        }
    }
}

// A head's [steps, dim] within a larger tensor.
View head(const Heads& x, std::int64_t b, std::int64_t h) {
    return {x.data + b * x.batch + h * x.head, x.step, 1};
}

// out [rows, columns] = a b^T for packed left panels `a` (of depth `depth`, of which `k` are used)
// and one packed right panel of `width` columns.
void panel_product(const float* a, const float* b, std::int64_t rows, std::int64_t k,
                   std::int64_t depth, std::int64_t width, float scale, float* out) {
    for (std::int64_t i = 0; i < rows; i += kRows) {
        tile_of(a + i * depth, b, k, scale, false, out + i * width, width,
                std::min(kRows, rows - i), width);
    }
}

// out[query * row + i] = x[i][query] / (divisors ? divisors[query] : 1) for a block of queries
void write_transposed(const float* x, std::int64_t dim, std::int64_t queries, std::int64_t width,
                      const float* divisors, float* out, std::int64_t row) {
    for (std::int64_t i = 0; i < dim; i += kLanes) {
        const std::int64_t n = std::min(kLanes, dim - i);
        for (std::int64_t j = 0; j < queries; j += kLanes) {
            __m512 r[16];
            load_columns({x + i * width, width, 1}, j, n, kLanes, r);
#pragma GCC unroll 16
            for (int c = 0; c < 16; ++c) {
                if (c >= queries - j) break;
                if (divisors) r[c] = _mm512_div_ps(r[c], _mm512_set1_ps(divisors[j + c]));
                _mm512_mask_storeu_ps(out + (j + c) * row + i, first_lanes(n), r[c]);
            }
        }
    }
}

// out[key, :] (+)= sum over queries of weights[key][query] x[query, :]; added to keys before `add`.
void add_to_keys(const float* weights, std::int64_t keys, std::int64_t queries, std::int64_t width,
                 View x, std::int64_t dim, std::int64_t add, float* left, float* right, float* out,
                 std::int64_t row) {
    pack_left({weights, width, 1}, keys, queries, left);
    pack_right(x, queries, 0, dim, right);
    for (std::int64_t j = 0; j < dim; j += kColumns) {
        for (std::int64_t i = 0; i < keys; i += kRows) {
            tile_of(left + i * queries, right + j * queries, queries, 1.0f, i < add,
                    out + i * row + j, row, std::min(kRows, keys - i), std::min(kColumns, dim - j));
        }
    }
}

// Gives parts of a thread's scratch memory, each aligned to 64 bytes.
class Parts {
public:
    Parts(std::initializer_list<std::int64_t> sizes) {
        std::int64_t total = 0, i = 0;
        for (const std::int64_t size : sizes) total += sizes_[i++] = round_up(size, kLanes);
        at_ = scratch(Scratch::own, total);
    }
    float* take() {
        float* part = at_;
        at_ += *next_++;
        return part;
    }

private:
    std::int64_t sizes_[10];
    const std::int64_t* next_ = sizes_;
    float* at_;
};

template <typename Call>
void with_vectors(std::int64_t width, const Call& call) {
    if (width == 3 * kLanes) {
        call(std::integral_constant<int, 3>());
    } else if (width == 2 * kLanes) {
        call(std::integral_constant<int, 2>());
    } else {
        call(std::integral_constant<int, 1>());
    }
}

// What the queries from t on see: `keys` of them, those from `first` on hidden from earlier queries.
struct Seen {
    std::int64_t keys, first, pads;
};

Seen seen_by(const Attention& a, std::int64_t b, std::int64_t t, std::int64_t queries) {
    if (!a.lengths) return {t + queries, t, 0};
    return {a.lengths[b], a.lengths[b], a.pads[b]};
}

std::int64_t keys_of(const Attention& a, std::int64_t b) {
    return a.lengths ? a.lengths[b] : a.steps;
}

}  // namespace

void attention(const Attention& a, float* out, float* log_sums, int threads) {
    const std::int64_t T = a.steps, d = a.dim, dims = round_up(d, kRows), row = a.heads * d;
    const float scale = 1.0f / std::sqrt(static_cast<float>(d));
    parallel(threads, a.batch * a.heads, [&](std::int64_t task) {
        const std::int64_t b = task / a.heads, h = task % a.heads, S = keys_of(a, b);
        const View q = head(a.q, b, h), k = head(a.k, b, h), v = head(a.v, b, h);
        Parts parts{round_up(S, 2 * kRows) * d, dims * S, d * kColumns, S * kColumns,
                    dims * kColumns};
        float *keys = parts.take(), *values = parts.take(), *queries = parts.take();
        float *scores = parts.take(), *result = parts.take();
        pack_left(k, S, d, keys);
        pack_left(v.transposed(), d, S, values);
        for (std::int64_t t = 0; t < T; t += kColumns) {
            const std::int64_t n = std::min(kColumns, T - t), width = round_up(n, kLanes);
            const Seen see = seen_by(a, b, t, n);
            alignas(64) float sums[kColumns], logs[kColumns];
            pack_right(q.part(t, 0).transposed(), d, 0, n, queries);
            panel_product(keys, queries, see.keys, d, d, width, scale, scores);
            with_vectors(width, [&](auto vectors) {
                softmax<decltype(vectors)::value>(scores, see.keys, see.first, see.pads, sums, logs);
            });
            panel_product(values, scores, d, see.keys, S, width, 1.0f, result);
            write_transposed(result, d, n, width, sums, out + (b * T + t) * row + h * d, row);
            std::copy_n(logs, n, log_sums + task * T + t);
        }
    });
}

void attention_backward(const Attention& a, const Heads& grad, const float* log_sums, float* grad_q,
                        float* grad_k, float* grad_v, int threads) {
    const std::int64_t T = a.steps, d = a.dim, dims = round_up(d, kRows), row = a.heads * d;
    const std::int64_t wide = round_up(d, kColumns), slots = a.lengths ? a.slots : T;
    const float scale = 1.0f / std::sqrt(static_cast<float>(d));
    parallel(threads, a.batch * a.heads, [&](std::int64_t task) {
        const std::int64_t b = task / a.heads, h = task % a.heads, S = keys_of(a, b);
        const std::int64_t tall = round_up(S, 2 * kRows);
        const View q = head(a.q, b, h), k = head(a.k, b, h), v = head(a.v, b, h);
        const View g = head(grad, b, h);
        Parts parts{tall * d,     tall * d,     dims * S,        d * kColumns,   d * kColumns,
                    S * kColumns, S * kColumns, tall * kColumns, wide * kColumns, dims * kColumns};
        float *keys = parts.take(), *values = parts.take(), *keys_across = parts.take();
        float *queries = parts.take(), *grads = parts.take();
        float *scores = parts.take(), *score_grads = parts.take();
        float *left = parts.take(), *right = parts.take(), *result = parts.take();
        pack_left(k, S, d, keys);
        pack_left(v, S, d, values);
        pack_left(k.transposed(), d, S, keys_across);
        float* to_k = grad_k + b * slots * row + h * d;
        float* to_v = grad_v + b * slots * row + h * d;
        for (std::int64_t s = a.lengths ? S : slots; s < slots; ++s) {
            std::fill_n(to_k + s * row, d, 0.0f);
            std::fill_n(to_v + s * row, d, 0.0f);
        }
        for (std::int64_t t = 0; t < T; t += kColumns) {
            const std::int64_t n = std::min(kColumns, T - t), width = round_up(n, kLanes);
            const Seen see = seen_by(a, b, t, n);
            alignas(64) float logs[kColumns] = {};
            std::copy_n(log_sums + task * T + t, n, logs);
            pack_right(q.part(t, 0).transposed(), d, 0, n, queries);
            pack_right(g.part(t, 0).transposed(), d, 0, n, grads);
            panel_product(keys, queries, see.keys, d, d, width, scale, scores);
            panel_product(values, grads, see.keys, d, d, width, 1.0f, score_grads);
            with_vectors(width, [&](auto vectors) {
                softmax_backward<decltype(vectors)::value>(scores, score_grads, see.keys, see.first,
                                                           see.pads, logs, scale);
            });
            panel_product(keys_across, score_grads, d, see.keys, S, width, 1.0f, result);
            write_transposed(result, d, n, width, nullptr, grad_q + (b * T + t) * row + h * d, row);
            // Only what earlier queries have seen too has been written before.
            const std::int64_t written = t == 0 ? 0 : see.first;
            add_to_keys(scores, see.keys, n, width, g.part(t, 0), d, written, left, right, to_v,
                        row);
            add_to_keys(score_grads, see.keys, n, width, q.part(t, 0), d, written, left, right,
                        to_k, row);
        }
    });
}

}  // namespace audiogen_fast::train
