#include "pack.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

namespace audiogen_fast {
namespace {

// To the nearest whole number, ties to even, for |x| < 2^22; unlike std::nearbyint it vectorises on
// every processor. Float arithmetic is not reordered in this project.
inline float rounded(float x) { return (x + 12582912.0f) - 12582912.0f; }

// q = x / scale rounded to whole numbers in -limit .. limit, plus `offset`.
void quantize(const float* x, std::int64_t n, float scale, float limit, int offset,
              std::uint8_t* q) {
    for (std::int64_t i = 0; i < n; ++i) {
        const float value = scale > 0.0f ? x[i] / scale : 0.0f;
        const float whole = rounded(std::min(std::max(value, -limit), limit));
        q[i] = static_cast<std::uint8_t>(static_cast<int>(whole) + offset);
    }
}

float peak(const float* x, std::int64_t n) {
    float top = 0.0f;
    for (std::int64_t i = 0; i < n; ++i) top = std::max(top, std::fabs(x[i]));
    return top;
}

// Sixteen rows of a matrix, padded with zeros, and the same as integers.
struct Rows {
    std::vector<float> x;
    std::vector<std::uint8_t> q;
};

void pack_f32(const Rows& rows, std::int64_t columns, float* out) {
    for (std::int64_t c = 0; c < columns; ++c) {
        for (int r = 0; r < 16; ++r) out[16 * c + r] = rows.x[r * columns + c];
    }
}

void pack_bf16(const Rows& rows, std::int64_t columns, std::uint16_t* out) {
    for (std::int64_t c = 0; c < columns; ++c) {
        for (int r = 0; r < 16; ++r) {
            out[32 * (c / 2) + 2 * r + c % 2] = to_bf16(rows.x[r * columns + c]);
        }
    }
}

void pack_int8(Rows& rows, std::int64_t columns, std::uint8_t* out, float* scales) {
    for (int r = 0; r < 16; ++r) {
        const float* x = rows.x.data() + r * columns;
        scales[r] = peak(x, columns) / 127.0f;
        quantize(x, columns, scales[r], 127.0f, 128, rows.q.data() + r * columns);
    }
    for (std::int64_t c = 0; c < columns; c += 4) {
        for (int r = 0; r < 16; ++r) {
            std::memcpy(out + 16 * c + 4 * r, rows.q.data() + r * columns + c, 4);
        }
    }
}

void pack_int4(Rows& rows, std::int64_t columns, std::int64_t group, std::uint8_t* out,
               std::uint16_t* scales) {
    for (int r = 0; r < 16; ++r) {
        for (std::int64_t g = 0; g < columns / group; ++g) {
            const float* x = rows.x.data() + r * columns + g * group;
            // Rounded up, so that the largest value is never cut; values are then rounded with the
            // scale as it is stored.
            const float exact = peak(x, group) / 7.0f;
            std::uint16_t stored = to_bf16(exact);
            if (from_bf16(stored) < exact) ++stored;
            scales[16 * g + r] = stored;
            quantize(x, group, from_bf16(stored), 7.0f, 8,
                     rows.q.data() + r * columns + g * group);
        }
    }
    for (std::int64_t c = 0; c < columns; c += 8) {
        for (int r = 0; r < 16; ++r) {
            const std::uint8_t* q = rows.q.data() + r * columns + c;
            for (int i = 0; i < 4; ++i) {
                out[8 * c + 4 * r + i] = static_cast<std::uint8_t>(q[i] | q[i + 4] << 4);
            }
        }
    }
}

}  // namespace

std::uint16_t to_bf16(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, 4);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>(bits >> 16 | 64);
    return static_cast<std::uint16_t>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

float from_bf16(std::uint16_t half) {
    const std::uint32_t bits = static_cast<std::uint32_t>(half) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

Format parse_format(const std::string& name) {
    if (name == "float32") return Format::f32;
    if (name == "bfloat16") return Format::bf16;
    if (name == "int8") return Format::int8;
    if (name == "int4") return Format::int4;
    throw std::invalid_argument("format must be float32, bfloat16, int8 or int4, got " + name);
}

Matrix empty_matrix(Format format, std::int64_t group, std::int64_t n, std::int64_t k) {
    Matrix m;
    Packed& p = m.view;
    p.format = format;
    p.n = n;
    p.k = k;
    p.k_padded = format == Format::f32    ? k
                 : format == Format::bf16 ? round_up(k, 2)
                 : format == Format::int8 ? round_up(k, 16)
                                          : round_up(k, group);
    p.group = format == Format::int4 ? group : p.k_padded;
    return m;
}

void set_bias(Matrix& matrix, const float* bias) {
    if (!bias) return;
    matrix.bias = Buffer(static_cast<std::size_t>(matrix.view.n) * sizeof(float));
    std::memcpy(matrix.bias.as<float>(), bias, matrix.bias.bytes());
    matrix.view.bias = matrix.bias.as<float>();
}

void check_scales(const Packed& p) {
    const std::int64_t count = p.tiles() * 16 * p.groups();
    for (std::int64_t i = 0; i < count; ++i) {
        const float scale = p.format == Format::int8
                                ? static_cast<const float*>(p.scales)[i]
                                : from_bf16(static_cast<const std::uint16_t*>(p.scales)[i]);
        if (!std::isfinite(scale) || scale < 0.0f) {
            throw std::invalid_argument("scales must be finite and not negative, got " +
                                        std::to_string(scale));
        }
    }
}

Matrix pack(Format format, std::int64_t group, const float* data, std::int64_t n, std::int64_t k,
            const float* bias, Team& team) {
    Matrix m = empty_matrix(format, group, n, k);
    Packed& p = m.view;
    m.data = Buffer(static_cast<std::size_t>(p.data_bytes()));
    m.scales = Buffer(static_cast<std::size_t>(p.scale_bytes()));
    std::atomic<bool> finite{true};
    const auto pack_tiles = [&](int rank) {
        Rows rows;
        rows.x.resize(static_cast<std::size_t>(16 * p.k_padded));
        if (p.integer()) rows.q.resize(rows.x.size());
        const std::int64_t begin = p.tiles() * rank / team.size();
        const std::int64_t end = p.tiles() * (rank + 1) / team.size();
        for (std::int64_t t = begin; t < end; ++t) {
            std::fill(rows.x.begin(), rows.x.end(), 0.0f);
            for (std::int64_t r = 0; r < std::min<std::int64_t>(16, n - 16 * t); ++r) {
                std::copy_n(data + (16 * t + r) * k, k, rows.x.data() + r * p.k_padded);
            }
            // An infinite or undefined number times zero is undefined, and so is a sum with it.
            float sum = 0.0f;
            for (const float x : rows.x) sum += x * 0.0f;
            if (sum != 0.0f) finite = false;
            auto* out = m.data.as<std::uint8_t>() + t * p.tile_bytes();
            const std::int64_t scales = 16 * t * p.groups();
            switch (format) {
                case Format::f32:
                    pack_f32(rows, p.k_padded, reinterpret_cast<float*>(out));
                    break;
                case Format::bf16:
                    pack_bf16(rows, p.k_padded, reinterpret_cast<std::uint16_t*>(out));
                    break;
                case Format::int8:
                    pack_int8(rows, p.k_padded, out, m.scales.as<float>() + scales);
                    break;
                case Format::int4:
                    pack_int4(rows, p.k_padded, group, out, m.scales.as<std::uint16_t>() + scales);
                    break;
            }
        }
    };
    team.run(pack_tiles);
    if (!finite) throw std::invalid_argument("weights must be finite, got NaN or infinite");
    p.data = m.data.as<std::uint8_t>();
    p.scales = p.scale_bytes() > 0 ? m.scales.as<void>() : nullptr;
    set_bias(m, bias);
    return m;
}

}  // namespace audiogen_fast
