// A product with packed weights by itself, for tests and benchmarks of the kernels.
#include <algorithm>
#include <stdexcept>

#include "audiogen_fast/decoder.h"
#include "pack.h"

namespace audiogen_fast {

void packed_multiply(const std::string& format, std::int64_t group, const std::string& isa,
                     const float* weight, std::int64_t n, std::int64_t k, const float* bias,
                     const float* x, std::int64_t rows, bool gelu, float* out) {
    if (n <= 0 || k <= 0 || rows < 0 || (group != 64 && group != 128)) {
        throw std::invalid_argument("sizes must be positive, and group 64 or 128");
    }
    const Kernels& kernels = find_kernels(isa.c_str());
    Team team(1);
    const Matrix matrix = pack(parse_format(format), group, weight, n, k, bias, team);
    const Packed& w = matrix.view;
    const std::int64_t stride = round_up(k, kRowStep), groups = w.groups();
    std::vector<float> padded(static_cast<std::size_t>(rows * stride));
    std::vector<std::int8_t> q(padded.size());
    std::vector<float> scale(static_cast<std::size_t>(rows));
    std::vector<std::int32_t> sums(static_cast<std::size_t>(rows * groups));
    for (std::int64_t m = 0; m < rows; ++m) {
        std::copy_n(x + m * k, k, padded.data() + m * stride);
        if (w.integer()) {
            kernels.quantize(padded.data() + m * stride, w.k_padded, w.group, q.data() + m * stride,
                             scale.data() + m, sums.data() + m * groups);
        }
    }
    const Inputs in{rows, stride, padded.data(), q.data(), scale.data(), sums.data()};
    kernels.multiply(w, in, out, n, gelu ? Epilogue::gelu : Epilogue::store, 0, w.tiles());
}

std::vector<std::string> available_isas() {
    std::vector<std::string> names;
    for (const Kernels* kernels : available_kernels()) names.emplace_back(kernels->name);
    return names;
}

}  // namespace audiogen_fast
