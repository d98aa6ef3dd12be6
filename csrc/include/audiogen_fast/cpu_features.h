// What the processor and the operating system offer at run time.
#pragma once

namespace audiogen_fast {

// An instruction set is true only when the processor has it and the operating system saves its
// registers. AMX further needs the process to ask Linux for the tile registers before first use.
struct CpuFeatures {
    bool avx2 = false;
    bool fma = false;
    bool f16c = false;
    bool avx512f = false;
    bool avx512bw = false;
    bool avx512vl = false;
    bool avx512dq = false;
    bool avx512_vnni = false;
    bool avx512_bf16 = false;
    bool amx_tile = false;
    bool amx_int8 = false;
    bool amx_bf16 = false;
    bool neon = false;
};

CpuFeatures cpu_features() noexcept;

}  // namespace audiogen_fast
