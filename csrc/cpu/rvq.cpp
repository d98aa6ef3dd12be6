#include "audiogen_fast/rvq.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace audiogen_fast {
namespace {

// A tile of frames x channels is summed with rows of a codebook contiguous, then written with
// frames contiguous: both sides stream whole cache lines, and the tile (4 KiB) stays in L1.
constexpr std::int64_t kFrames = 16;
constexpr std::int64_t kChannels = 64;

void check_codes(const std::int64_t* codes, std::int64_t batch, std::int64_t n_codebooks,
                 std::int64_t frames, std::int64_t card) {
    const std::int64_t count = batch * n_codebooks * frames;
    for (std::int64_t i = 0; i < count; ++i) {
        if (codes[i] < 0 || codes[i] >= card) {
            throw std::invalid_argument(
                "codes must lie in [0, " + std::to_string(card) + "), got " +
                std::to_string(codes[i]) + " at [" + std::to_string(i / (n_codebooks * frames)) +
                ", " + std::to_string(i / frames % n_codebooks) + ", " +
                std::to_string(i % frames) + "]");
        }
    }
}

}  // namespace

void rvq_decode(float* out, const std::int64_t* codes, const std::vector<const float*>& codebooks,
                std::int64_t batch, std::int64_t frames, std::int64_t card, std::int64_t dim) {
    const auto n_codebooks = static_cast<std::int64_t>(codebooks.size());
    check_codes(codes, batch, n_codebooks, frames, card);
    float tile[kFrames][kChannels];
    for (std::int64_t b = 0; b < batch; ++b) {
        for (std::int64_t t0 = 0; t0 < frames; t0 += kFrames) {
            const std::int64_t nt = std::min(kFrames, frames - t0);
            for (std::int64_t d0 = 0; d0 < dim; d0 += kChannels) {
                const std::int64_t nd = std::min(kChannels, dim - d0);
                for (std::int64_t t = 0; t < nt; ++t) {
                    std::fill_n(tile[t], nd, 0.0f);
                    for (std::int64_t k = 0; k < n_codebooks; ++k) {
                        const std::int64_t code = codes[(b * n_codebooks + k) * frames + t0 + t];
                        const float* row = codebooks[static_cast<std::size_t>(k)] + code * dim + d0;
                        for (std::int64_t d = 0; d < nd; ++d) tile[t][d] += row[d];
                    }
                }
                for (std::int64_t d = 0; d < nd; ++d) {
                    float* to = out + (b * dim + d0 + d) * frames + t0;
                    for (std::int64_t t = 0; t < nt; ++t) to[t] = tile[t][d];
                }
            }
        }
    }
}

}  // namespace audiogen_fast
