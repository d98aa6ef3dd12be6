#include "audiogen_fast/training.h"

#include <stdexcept>

#include "audiogen_fast/cpu_features.h"

namespace audiogen_fast {

#if defined(AF_X86)

namespace train {
void product(const Product&, int);
void attention(const Attention&, float*, float*, int);
void attention_backward(const Attention&, const Heads&, const float*, float*, float*, float*, int);
}  // namespace train

bool training_ops_available() noexcept {
    static const bool available = [] {
        const CpuFeatures cpu = cpu_features();
        return cpu.avx512f && cpu.avx512bw && cpu.avx512vl && cpu.avx512dq && cpu.fma;
    }();
    return available;
}

#else

bool training_ops_available() noexcept { return false; }

#endif

namespace {

void need_them() {
    if (!training_ops_available()) throw std::runtime_error("this needs a processor with AVX-512");
}

}  // namespace

void product(const Product& p, int threads) {
    need_them();
#if defined(AF_X86)
    train::product(p, threads);
#else
    (void)p, (void)threads;
#endif
}

void attention(const Attention& a, float* out, float* log_sums, int threads) {
    need_them();
#if defined(AF_X86)
    train::attention(a, out, log_sums, threads);
#else
    (void)a, (void)out, (void)log_sums, (void)threads;
#endif
}

void attention_backward(const Attention& a, const Heads& grad, const float* log_sums, float* grad_q,
                        float* grad_k, float* grad_v, int threads) {
    need_them();
#if defined(AF_X86)
    train::attention_backward(a, grad, log_sums, grad_q, grad_k, grad_v, threads);
#else
    (void)a, (void)grad, (void)log_sums, (void)grad_q, (void)grad_k, (void)grad_v, (void)threads;
#endif
}

}  // namespace audiogen_fast
