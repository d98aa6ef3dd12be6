#include "audiogen_fast/bandwidth.h"

#include <array>
#include <chrono>
#include <stdexcept>
#include <string>
#include <vector>

#include "decoder/memory.h"
#include "decoder/team.h"

namespace audiogen_fast {
namespace {

constexpr std::int64_t kLine = 8;  // words of a cache line

// One pass in order with the sums of a line in registers: neither wider loads, nor prefetching by
// hand, nor several places at once read faster.
std::uint64_t sum(const std::uint64_t* data, std::int64_t words) {
    std::array<std::uint64_t, kLine> sums{};
    for (std::int64_t i = 0; i < words; i += kLine) {
        for (std::int64_t j = 0; j < kLine; ++j) sums[static_cast<std::size_t>(j)] += data[i + j];
    }
    std::uint64_t total = 0;
    for (const std::uint64_t value : sums) total += value;
    return total;
}

}  // namespace

std::vector<double> read_bandwidth(std::int64_t bytes, int threads, int rounds) {
    if (threads < 1 || rounds < 1) {
        throw std::invalid_argument("threads and rounds must be positive, got " +
                                    std::to_string(threads) + " and " + std::to_string(rounds));
    }
    const std::int64_t words = bytes / 8 / threads / kLine * kLine;  // of one thread
    if (words < 8 * 1024) {
        throw std::invalid_argument("bytes must be at least 64 KiB for each thread, got " +
                                    std::to_string(bytes));
    }
    const Buffer buffer(static_cast<std::size_t>(words * 8 * threads));
    std::uint64_t* const data = buffer.as<std::uint64_t>();
    for (std::int64_t i = 0; i < words * threads; ++i) data[i] = static_cast<std::uint64_t>(i);
    std::vector<std::uint64_t> sums(static_cast<std::size_t>(threads));
    std::vector<double> found;
    Team team(threads);
    for (int round = 0; round < rounds; ++round) {
        const auto begin = std::chrono::steady_clock::now();
        team.run([&](int rank) {
            sums[static_cast<std::size_t>(rank)] = sum(data + rank * words, words);
        });
        const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
        found.push_back(static_cast<double>(words * 8 * threads) / took.count());
    }
    // The sum is known: the compiler cannot leave the reading out, and a wrong loop shows.
    const auto n = static_cast<std::uint64_t>(words * threads);
    std::uint64_t total = 0;
    for (const std::uint64_t value : sums) total += value;
    if (total != n / 2 * (n - 1)) throw std::runtime_error("the sum of what was read is wrong");
    return found;
}

}  // namespace audiogen_fast
