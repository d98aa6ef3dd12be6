// Packing of weight matrices into the tiles the kernels read.
#pragma once

#include <string>

#include "kernels.h"
#include "memory.h"

namespace audiogen_fast {

// Rows of activations start on a multiple of this many floats, past every format's padding.
constexpr std::int64_t kRowStep = 128;

inline std::int64_t round_up(std::int64_t value, std::int64_t step) {
    return (value + step - 1) / step * step;
}

struct Matrix {
    Packed view;
    Buffer data, scales, bias;
};

Format parse_format(const std::string& name);  // throws std::invalid_argument
Matrix pack(Format format, std::int64_t group, const float* data, std::int64_t n, std::int64_t k,
            const float* bias);
std::uint16_t to_bf16(float value);  // to the nearest, ties to even
float from_bf16(std::uint16_t half);

}  // namespace audiogen_fast
