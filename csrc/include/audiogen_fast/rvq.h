// Residual vector quantiser: codes back to latents.
#pragma once

#include <cstdint>
#include <vector>

namespace audiogen_fast {

// out[b, :, t] = sum over k = 0.. of codebooks[k][codes[b, k, t], :], rounded after each addition
// in that order, as ((0 + e0) + e1) + ...
//
// out: [batch, dim, frames]; codes: [batch, codebooks.size(), frames]; each codebook: [card, dim];
// all contiguous. Throws std::invalid_argument, before anything is written, for a code outside
// [0, card).
void rvq_decode(float* out, const std::int64_t* codes, const std::vector<const float*>& codebooks,
                std::int64_t batch, std::int64_t frames, std::int64_t card, std::int64_t dim);

}  // namespace audiogen_fast
