#include "sampler.h"

#include <algorithm>
#include <functional>

namespace audiogen_fast {
namespace {

// Entries above `value` stay, and the first `ties` of those equal to it.
struct Threshold {
    float value = 0.0f;
    std::int64_t ties = 0;
};

Threshold top_k_threshold(const float* probs, std::int64_t card, std::int64_t k, float* scratch) {
    std::copy_n(probs, card, scratch);
    std::nth_element(scratch, scratch + k - 1, scratch + card, std::greater<>());
    return {scratch[k - 1], card};  // all that tie with the k-th stay
}

Threshold top_p_threshold(const float* probs, std::int64_t card, float p, float* scratch) {
    std::copy_n(probs, card, scratch);
    std::sort(scratch, scratch + card, std::greater<>());
    std::int64_t kept = 1;
    float cumulative = scratch[0];
    while (kept < card) {
        cumulative += scratch[kept];
        if (cumulative - scratch[kept] > p) break;
        ++kept;
    }
    const float last = scratch[kept - 1];
    const float* first = std::find(scratch, scratch + kept, last);
    return {last, scratch + kept - first};
}

}  // namespace

std::int64_t sample(const Kernels& kernels, const float* logits, std::int64_t card,
                    const Sampling& sampling, ExponentialRow noise, float* scratch) {
    if (sampling.greedy) return std::max_element(logits, logits + card) - logits;
    float* probs = scratch;
    kernels.softmax(logits, card, sampling.temperature, probs);
    Threshold threshold{0.0f, card};
    if (sampling.top_p > 0.0f) {
        threshold = top_p_threshold(probs, card, sampling.top_p, scratch + card);
    } else if (sampling.top_k > 0 && sampling.top_k < card) {
        threshold = top_k_threshold(probs, card, sampling.top_k, scratch + card);
    }
    std::int64_t best = 0, ties = 0;
    float best_score = -1.0f;
    for (std::int64_t i = 0; i < card; ++i) {
        const bool tie = probs[i] == threshold.value;
        if (probs[i] < threshold.value || (tie && ++ties > threshold.ties)) continue;
        const float score = probs[i] / noise(i);
        if (score > best_score) {
            best_score = score;
            best = i;
        }
    }
    return best;
}

}  // namespace audiogen_fast
