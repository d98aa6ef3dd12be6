#include "pack.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

namespace audiogen_fast {
namespace {

// The value of a row and column, zero outside the matrix.
struct Source {
    const float* data;
    std::int64_t n, k;
    float operator()(std::int64_t row, std::int64_t column) const {
        return row < n && column < k ? data[row * k + column] : 0.0f;
    }
};

float peak(const Source& source, std::int64_t row, std::int64_t begin, std::int64_t end) {
    float top = 0.0f;
    for (std::int64_t c = begin; c < end; ++c) top = std::max(top, std::fabs(source(row, c)));
    return top;
}

int quantized(float value, float scale, int limit) {
    if (scale == 0.0f) return 0;
    const float q = std::nearbyint(value / scale);
    return static_cast<int>(std::clamp(q, static_cast<float>(-limit), static_cast<float>(limit)));
}

void pack_f32(const Source& source, std::int64_t tile, std::int64_t columns, float* out) {
    for (std::int64_t c = 0; c < columns; ++c) {
        for (int r = 0; r < 16; ++r) out[16 * c + r] = source(16 * tile + r, c);
    }
}

void pack_bf16(const Source& source, std::int64_t tile, std::int64_t columns, std::uint16_t* out) {
    for (std::int64_t c = 0; c < columns; ++c) {
        for (int r = 0; r < 16; ++r) {
            out[32 * (c / 2) + 2 * r + c % 2] = to_bf16(source(16 * tile + r, c));
        }
    }
}

void pack_int8(const Source& source, std::int64_t tile, std::int64_t columns, std::uint8_t* out,
               float* scales) {
    for (int r = 0; r < 16; ++r) {
        const std::int64_t row = 16 * tile + r;
        const float scale = peak(source, row, 0, columns) / 127.0f;
        scales[16 * tile + r] = scale;
        for (std::int64_t c = 0; c < columns; ++c) {
            out[64 * (c / 4) + 4 * r + c % 4] =
                static_cast<std::uint8_t>(quantized(source(row, c), scale, 127) + 128);
        }
    }
}

void pack_int4(const Source& source, std::int64_t tile, std::int64_t columns, std::int64_t group,
               std::uint8_t* out, std::uint16_t* scales) {
    const std::int64_t groups = columns / group;
    for (int r = 0; r < 16; ++r) {
        const std::int64_t row = 16 * tile + r;
        for (std::int64_t g = 0; g < groups; ++g) {
            // Rounded up, so that the largest value is never cut; values are then rounded with the
            // scale as it is stored.
            const float exact = peak(source, row, g * group, (g + 1) * group) / 7.0f;
            std::uint16_t stored = to_bf16(exact);
            if (from_bf16(stored) < exact) ++stored;
            scales[16 * (tile * groups + g) + r] = stored;
            const float scale = from_bf16(stored);
            for (std::int64_t c = g * group; c < (g + 1) * group; ++c) {
                const int q = quantized(source(row, c), scale, 7) + 8;
                std::uint8_t& byte = out[64 * (c / 8) + 4 * r + c % 4];
                byte = static_cast<std::uint8_t>(byte | (c % 8 < 4 ? q : q << 4));
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

Matrix pack(Format format, std::int64_t group, const float* data, std::int64_t n, std::int64_t k,
            const float* bias) {
    for (std::int64_t i = 0; i < n * k; ++i) {
        if (!std::isfinite(data[i])) {
            throw std::invalid_argument("weights must be finite, got NaN or infinite");
        }
    }
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
    const std::int64_t tiles = p.tiles();
    m.data = Buffer(static_cast<std::size_t>(tiles * p.tile_bytes()));
    const std::size_t scale_bytes = format == Format::int8 ? 4 : format == Format::int4 ? 2 : 0;
    m.scales = Buffer(static_cast<std::size_t>(tiles * 16 * p.groups()) * scale_bytes);
    const Source source{data, n, k};
    for (std::int64_t t = 0; t < tiles; ++t) {
        auto* out = m.data.as<std::uint8_t>() + t * p.tile_bytes();
        switch (format) {
            case Format::f32:
                pack_f32(source, t, p.k_padded, reinterpret_cast<float*>(out));
                break;
            case Format::bf16:
                pack_bf16(source, t, p.k_padded, reinterpret_cast<std::uint16_t*>(out));
                break;
            case Format::int8:
                pack_int8(source, t, p.k_padded, out, m.scales.as<float>());
                break;
            case Format::int4:
                pack_int4(source, t, p.k_padded, group, out, m.scales.as<std::uint16_t>());
                break;
        }
    }
    p.data = m.data.as<std::uint8_t>();
    p.scales = m.scales.as<void>();
    if (bias) {
        m.bias = Buffer(static_cast<std::size_t>(n) * sizeof(float));
        std::memcpy(m.bias.as<float>(), bias, static_cast<std::size_t>(n) * sizeof(float));
        p.bias = m.bias.as<float>();
    }
    return m;
}

}  // namespace audiogen_fast
