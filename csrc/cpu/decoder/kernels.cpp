#include "kernels.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

#include "audiogen_fast/cpu_features.h"

namespace audiogen_fast {

extern const Kernels kernels_portable;
#if defined(AF_X86)
extern const Kernels kernels_avx512_vnni, kernels_avx512, kernels_avx2;
#endif

std::vector<const Kernels*> available_kernels() {
    std::vector<const Kernels*> found;
#if defined(AF_X86)
    const CpuFeatures cpu = cpu_features();
    const bool avx512 = cpu.avx512f && cpu.avx512bw && cpu.avx512vl;
    if (avx512 && cpu.avx512_vnni) found.push_back(&kernels_avx512_vnni);
    if (avx512) found.push_back(&kernels_avx512);
    if (cpu.avx2 && cpu.fma) found.push_back(&kernels_avx2);
#endif
    found.push_back(&kernels_portable);
    return found;
}

const Kernels& find_kernels(const char* name) {
    const auto found = available_kernels();
    if (!name || !*name) return *found.front();
    std::string known;
    for (const Kernels* kernels : found) {
        if (std::string(kernels->name) == name) return *kernels;
        known += std::string(known.empty() ? "" : ", ") + kernels->name;
    }
    throw std::invalid_argument("AUDIOGEN_FAST_ISA must be one of " + known + " here, got " + name);
}

}  // namespace audiogen_fast
