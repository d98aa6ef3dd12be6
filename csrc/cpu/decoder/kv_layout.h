// Where the keys and values of attention lie in memory.
#pragma once

#include <algorithm>
#include <cstdint>

#include "pack.h"

namespace audiogen_fast {

// Keys and values of one kind of attention. Keys lie in tiles of 16 positions: [tile][d][16], or
// [tile][d / 2][16][2] in bfloat16; values in rows [position][d].
struct KVLayout {
    std::int64_t rows = 0, heads = 0, capacity = 0, head_dim = 0;
    bool half = false;

    std::int64_t element() const { return half ? 2 : 4; }
    std::int64_t head_bytes() const { return capacity * head_dim * element(); }
    std::size_t bytes() const { return static_cast<std::size_t>(rows * heads * head_bytes()); }
    std::int64_t offset(std::int64_t row, std::int64_t head) const {
        return (row * heads + head) * head_bytes();
    }

    void write(std::uint8_t* keys, std::uint8_t* values, std::int64_t row, std::int64_t head,
               std::int64_t position, const float* k, const float* v) const {
        const std::int64_t base = offset(row, head), lane = position % 16;
        const std::int64_t tile = position / 16 * 16 * head_dim;
        if (half) {
            auto* key = reinterpret_cast<std::uint16_t*>(keys + base) + tile;
            auto* value = reinterpret_cast<std::uint16_t*>(values + base) + position * head_dim;
            for (std::int64_t d = 0; d < head_dim; ++d) {
                key[32 * (d / 2) + 2 * lane + d % 2] = to_bf16(k[d]);
                value[d] = to_bf16(v[d]);
            }
            return;
        }
        auto* key = reinterpret_cast<float*>(keys + base) + tile;
        for (std::int64_t d = 0; d < head_dim; ++d) key[16 * d + lane] = k[d];
        std::copy_n(v, head_dim, reinterpret_cast<float*>(values + base) + position * head_dim);
    }
};

}  // namespace audiogen_fast
