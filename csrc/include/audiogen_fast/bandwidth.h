// How fast this machine reads memory: what a decoding step is measured against.
#pragma once

#include <cstdint>
#include <vector>

namespace audiogen_fast {

// Reads a block of `bytes` from end to end, `rounds` times, each thread a part of its own, and
// returns the bytes per second of each round. Throws std::invalid_argument for parts below 64 KiB
// and for counts that are not positive.
std::vector<double> read_bandwidth(std::int64_t bytes, int threads, int rounds);

}  // namespace audiogen_fast
