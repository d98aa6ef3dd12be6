// Packing of weight matrices into the tiles the kernels read.
#pragma once

#include <string>

#include "kernels.h"
#include "memory.h"
#include "team.h"

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
// A matrix of that shape without data.
Matrix empty_matrix(Format format, std::int64_t group, std::int64_t n, std::int64_t k);
// Throws std::invalid_argument for weights that are not finite.
Matrix pack(Format format, std::int64_t group, const float* data, std::int64_t n, std::int64_t k,
            const float* bias, Team& team);
void set_bias(Matrix& matrix, const float* bias);
// Throws std::invalid_argument for a scale that `pack` would not have made.
void check_scales(const Packed& packed);
std::uint16_t to_bf16(float value);  // to the nearest, ties to even
float from_bf16(std::uint16_t half);

}  // namespace audiogen_fast
