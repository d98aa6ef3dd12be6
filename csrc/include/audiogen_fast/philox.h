// Counter-based noise: the same (seed, item, step, codebook, entry) gives the same number on any
// machine, in any batch, in any order.
#pragma once

#include <array>
#include <cstdint>

namespace audiogen_fast {

// Philox 4x32 with ten rounds: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as
// 1, 2, 3", SC 2011.
std::array<std::uint32_t, 4> philox4x32_10(std::array<std::uint32_t, 2> key,
                                           std::array<std::uint32_t, 4> counter) noexcept;

// Fills out[n_items, n_codebooks, card] with Exp(1) noise. Entry j of (item, codebook) is word
// j % 4 of the block with counter (j / 4, step, codebook, items[i]) and the halves of seeds[i] as
// key, made exponential by `exponential`. items[i] must lie in [0, 2^32).
// Throws std::invalid_argument for an item outside.
void philox_exponential(float* out, const std::int64_t* seeds, const std::int64_t* items,
                        std::int64_t n_items, std::int64_t n_codebooks, std::int64_t card,
                        std::uint32_t step);

// The same noise of one (seed, item, step, codebook), entry by entry, in ascending order fastest.
class ExponentialRow {
public:
    ExponentialRow(std::int64_t seed, std::int64_t item, std::uint32_t step,
                   std::uint32_t codebook) noexcept
        : key_{static_cast<std::uint32_t>(seed),
               static_cast<std::uint32_t>(static_cast<std::uint64_t>(seed) >> 32)},
          step_(step),
          codebook_(codebook),
          item_(static_cast<std::uint32_t>(item)) {}
    float operator()(std::int64_t entry) noexcept;

private:
    std::array<std::uint32_t, 2> key_;
    std::uint32_t step_, codebook_, item_;
    std::int64_t block_ = -1;
    std::array<std::uint32_t, 4> words_{};
};

}  // namespace audiogen_fast
