// Choice of the next code from a row of logits, as `sample_codebooks` in ops/reference.py defines.
#pragma once

#include "audiogen_fast/decoder.h"
#include "audiogen_fast/philox.h"
#include "kernels.h"

namespace audiogen_fast {

// scratch: 3 * card floats. Only entries that can be drawn cost their noise.
std::int64_t sample(const Kernels& kernels, const float* logits, std::int64_t card,
                    const Sampling& sampling, ExponentialRow noise, float* scratch);

}  // namespace audiogen_fast
