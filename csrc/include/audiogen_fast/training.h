// What training on a CPU spends its time in: products of matrices and attention, float32.
#pragma once

#include <cstdint>

namespace audiogen_fast {

// out = alpha a b, plus what out holds with `add`. a: [m, k], b: [k, n], element (i, j) at
// i * row + j * column, one of the two being 1; out: [m, n], rows contiguous and out_row apart.
struct Product {
    std::int64_t m, n, k;
    const float* a;
    std::int64_t a_row, a_column;
    const float* b;
    std::int64_t b_row, b_column;
    float* out;
    std::int64_t out_row;
    float alpha;
    bool add;
};

// A tensor [batch, heads, steps, dim] in memory; the last dimension is contiguous, and the others are
// that many numbers apart.
struct Heads {
    const float* data;
    std::int64_t batch, head, step;
};

struct Attention {
    std::int64_t batch, heads, steps, dim;
    Heads q, k, v;
    // Null: keys and values are of the same steps, and none is seen by an earlier query. Otherwise
    // there are `slots` of them, all queries see the first lengths[b], and `pads[b]` more with score
    // and value zero; without any, the result is zero.
    std::int64_t slots;
    const std::int64_t *lengths, *pads;
};

// Whether this processor can run what is below; elsewhere it throws std::runtime_error.
bool training_ops_available() noexcept;

// Sums are taken in the same order on any number of threads.
void product(const Product& p, int threads);

// out = softmax(q k^T / sqrt(dim)) v, as [batch, steps, heads, dim], and the logarithm of each
// softmax's denominator [batch, heads, steps].
void attention(const Attention& a, float* out, float* log_sums, int threads);

// Gradients of q, k and v, laid out as `out`, for the gradient of `out`. Each head is summed by one
// thread in one order.
void attention_backward(const Attention& a, const Heads& grad, const float* log_sums, float* grad_q,
                        float* grad_k, float* grad_v, int threads);

}  // namespace audiogen_fast
