#include "audiogen_fast/philox.h"

#include <cmath>
#include <stdexcept>
#include <string>

namespace audiogen_fast {
namespace {

// -log(u) with u = (top 24 bits + 1/2) / 2^24, so that u is never 0 or 1 and the result lies in
// [2.9e-8, 17.4]. In float32 the largest u would round to 1 and the noise to 0, and a draw by
// argmax(p / noise) would then ignore p. In float64 u is exact and the logarithm good enough that
// its rounding to float32 is the same with every libm.
float exponential(std::uint32_t word) noexcept {
    const double u = (static_cast<double>(word >> 8) + 0.5) * 0x1p-24;
    return static_cast<float>(-std::log(u));
}

}  // namespace

std::array<std::uint32_t, 4> philox4x32_10(std::array<std::uint32_t, 2> key,
                                           std::array<std::uint32_t, 4> counter) noexcept {
    for (int round = 0; round < 10; ++round) {
        const std::uint64_t product0 = std::uint64_t{0xD2511F53u} * counter[0];
        const std::uint64_t product1 = std::uint64_t{0xCD9E8D57u} * counter[2];
        counter = {
            static_cast<std::uint32_t>(product1 >> 32) ^ counter[1] ^ key[0],
            static_cast<std::uint32_t>(product1),
            static_cast<std::uint32_t>(product0 >> 32) ^ counter[3] ^ key[1],
            static_cast<std::uint32_t>(product0),
        };
        key[0] += 0x9E3779B9u;
        key[1] += 0xBB67AE85u;
    }
    return counter;
}

float ExponentialRow::operator()(std::int64_t entry) noexcept {
    if (entry / 4 != block_) {
        block_ = entry / 4;
        words_ = philox4x32_10(
            key_, {static_cast<std::uint32_t>(block_), step_, codebook_, item_});
    }
    return exponential(words_[static_cast<std::size_t>(entry % 4)]);
}

void philox_exponential(float* out, const std::int64_t* seeds, const std::int64_t* items,
                        std::int64_t n_items, std::int64_t n_codebooks, std::int64_t card,
                        std::uint32_t step) {
    for (std::int64_t i = 0; i < n_items; ++i) {
        if (items[i] < 0 || items[i] > std::int64_t{0xFFFFFFFF}) {
            throw std::invalid_argument("items must lie in [0, 2^32), got " +
                                        std::to_string(items[i]) + " at position " +
                                        std::to_string(i));
        }
    }
    for (std::int64_t i = 0; i < n_items; ++i) {
        for (std::int64_t codebook = 0; codebook < n_codebooks; ++codebook) {
            ExponentialRow noise(seeds[i], items[i], step, static_cast<std::uint32_t>(codebook));
            float* row = out + (i * n_codebooks + codebook) * card;
            for (std::int64_t j = 0; j < card; ++j) row[j] = noise(j);
        }
    }
}

}  // namespace audiogen_fast
