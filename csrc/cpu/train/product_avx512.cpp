// Products of float32 matrices on the threads of torch.
#include <cstdlib>
#include <memory>
#include <new>

#include "audiogen_fast/training.h"
#include "parallel.h"
#include "tile_avx512.h"

namespace audiogen_fast::train {
namespace {

// A block of the left matrix and a panel of the right one stay in the second cache of a core:
// 192 x 512 and 512 x 48 floats. The right block may fill the third: 512 x 3072.
constexpr std::int64_t kDepth = 512, kBlockRows = 192, kBlockColumns = 64 * kColumns;

struct Free {
    void operator()(float* p) const { std::free(p); }
};
using Buffer = std::unique_ptr<float, Free>;

Buffer allocate(std::int64_t floats) {
    const auto bytes = static_cast<std::size_t>(round_up(4 * floats, 64));
    Buffer buffer(static_cast<float*>(std::aligned_alloc(64, bytes)));
    if (!buffer) throw std::bad_alloc();
    return buffer;
}

}  // namespace

float* scratch(Scratch which, std::int64_t floats) {
    thread_local Buffer buffers[2];
    thread_local std::int64_t sizes[2] = {};
    const int i = static_cast<int>(which);
    if (sizes[i] < floats) {
        sizes[i] = 0;
        buffers[i].reset();
        buffers[i] = allocate(floats);
        sizes[i] = floats;
    }
    return buffers[i].get();
}

void product(const Product& p, int threads) {
    if (p.m == 0 || p.n == 0) return;
    const View a{p.a, p.a_row, p.a_column}, b{p.b, p.b_row, p.b_column};
    // As few parts of k as there must be, all about as deep; one for an empty sum.
    const std::int64_t parts = std::max<std::int64_t>(1, (p.k + kDepth - 1) / kDepth);
    const std::int64_t depth = std::max<std::int64_t>(1, (p.k + parts - 1) / parts);
    // As many blocks of rows for each thread, all about as large.
    std::int64_t blocks = round_up((p.m + kBlockRows - 1) / kBlockRows, threads);
    const std::int64_t block = round_up((p.m + blocks - 1) / blocks, kRows);
    blocks = (p.m + block - 1) / block;
    float* right =
        scratch(Scratch::shared, depth * std::min(kBlockColumns, round_up(p.n, kColumns)));
    for (std::int64_t j0 = 0; j0 < p.n; j0 += kBlockColumns) {
        const std::int64_t n = std::min(kBlockColumns, p.n - j0);
        // Groups of columns where there are fewer blocks of rows than threads.
        const std::int64_t panels = (n + kColumns - 1) / kColumns;
        const std::int64_t groups = std::min(panels, (threads + blocks - 1) / blocks);
        for (std::int64_t k0 = 0; k0 == 0 || k0 < p.k; k0 += depth) {
            const std::int64_t k = std::min(depth, p.k - k0);
            parallel(threads, panels, [&](std::int64_t panel) {
                const std::int64_t first = panel * kColumns;
                pack_right(b.part(k0, j0), k, first, std::min(first + kColumns, n), right);
            });
            parallel(threads, blocks * groups, [&](std::int64_t task) {
                const std::int64_t i0 = task / groups * block, group = task % groups;
                const std::int64_t rows = std::min(block, p.m - i0);
                float* left = scratch(Scratch::own, round_up(block, 2 * kRows) * depth);
                pack_left(a.part(i0, k0), rows, k, left);
                const std::int64_t end = (group + 1) * panels / groups * kColumns;
                for (std::int64_t j = group * panels / groups * kColumns; j < std::min(end, n);
                     j += kColumns) {
                    for (std::int64_t i = 0; i < rows; i += kRows) {
                        tile_of(left + i * k, right + j * k, k, p.alpha, p.add || k0 > 0,
                                p.out + (i0 + i) * p.out_row + j0 + j, p.out_row,
                                std::min(kRows, rows - i), std::min(kColumns, n - j));
                    }
                }
            });
        }
    }
}

}  // namespace audiogen_fast::train
