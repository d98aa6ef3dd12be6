#include "audiogen_fast/cpu_features.h"

#include <cstdint>

#if defined(__x86_64__) && defined(__GNUC__)
#include <cpuid.h>
#define AUDIOGEN_FAST_HAS_CPUID 1
#endif

namespace audiogen_fast {

#if defined(AUDIOGEN_FAST_HAS_CPUID)

// Bit numbers: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2A, CPUID.
namespace {

struct Registers {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Registers cpuid(unsigned leaf, unsigned subleaf) noexcept {
    Registers r;
    // Leaves a clear answer of zeros when the processor does not know the leaf.
    __get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx);
    return r;
}

bool bit(std::uint64_t word, int n) noexcept { return (word >> n & 1) != 0; }

// Control register XCR0: which register files the operating system saves on a context switch.
std::uint64_t saved_registers() noexcept {
    std::uint32_t low = 0, high = 0;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return std::uint64_t{high} << 32 | low;
}

}  // namespace

CpuFeatures cpu_features() noexcept {
    CpuFeatures f;
    const Registers one = cpuid(1, 0);
    const bool has_xgetbv = bit(one.ecx, 27);
    if (!has_xgetbv) return f;
    const std::uint64_t saved = saved_registers();
    const bool ymm = (saved & 0x6) == 0x6;            // SSE and AVX state
    const bool zmm = ymm && (saved & 0xE0) == 0xE0;   // opmask and both halves of the ZMM state
    const bool tiles = (saved & 0x60000) == 0x60000;  // tile configuration and data
    const Registers seven = cpuid(7, 0);
    const Registers seven_one = cpuid(7, 1);

    f.fma = ymm && bit(one.ecx, 12);
    f.f16c = ymm && bit(one.ecx, 29);
    f.avx2 = ymm && bit(seven.ebx, 5);
    f.avx512f = zmm && bit(seven.ebx, 16);
    f.avx512bw = zmm && bit(seven.ebx, 30);
    f.avx512vl = zmm && bit(seven.ebx, 31);
    f.avx512dq = zmm && bit(seven.ebx, 17);
    f.avx512_vnni = zmm && bit(seven.ecx, 11);
    f.avx512_bf16 = zmm && bit(seven_one.eax, 5);
    f.amx_tile = tiles && bit(seven.edx, 24);
    f.amx_int8 = tiles && bit(seven.edx, 25);
    f.amx_bf16 = tiles && bit(seven.edx, 22);
    return f;
}

#else

CpuFeatures cpu_features() noexcept {
    CpuFeatures f;
#if defined(__aarch64__) || defined(_M_ARM64)
    f.neon = true;  // part of the base 64-bit ARM architecture
#endif
    return f;
}

#endif

}  // namespace audiogen_fast
