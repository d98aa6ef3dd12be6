// What a pass does: every thread runs all phases, with barriers between them.
#include "plan.h"

#include <algorithm>

namespace audiogen_fast {
namespace {

// Rows from which threads prepare the inputs of a product together rather than each for itself.
constexpr std::int64_t kSharedRows = 4;

}  // namespace

// This thread's part of `out (=|+=|gelu) w * input`, the input being x itself or its norm.
void Decoder::Impl::multiply(int rank, const Matrix& matrix, const float* input,
                             std::int64_t input_stride, std::int64_t count, const Norm* norm,
                             float* out, std::int64_t out_stride, Epilogue epilogue) {
    const Packed& w = matrix.view;
    const bool shared = team.size() > 1 && count >= kSharedRows && (norm || w.integer());
    InputCopy& copy = shared ? inputs : scratch[static_cast<std::size_t>(rank)].inputs;
    const auto [first, last] = shared ? share(count, rank) : std::pair(std::int64_t{0}, count);
    const std::int64_t q_stride = norm ? stride : input_stride;
    for (std::int64_t m = first; m < last; ++m) {
        const float* row = input + m * input_stride;
        if (norm) {
            float* normed = copy.x.data() + m * stride;
            kernels.layer_norm(row, norm->weight.data(), norm->bias.data(), config.eps, config.dim,
                               stride, normed);
            row = normed;
        }
        if (w.integer()) {
            kernels.quantize(row, w.k_padded, w.group, copy.q.data() + m * q_stride,
                             &copy.scale[static_cast<std::size_t>(m)],
                             copy.sums.data() + m * w.groups());
        }
    }
    if (shared) team.barrier();
    Inputs in;
    in.rows = count;
    in.stride = q_stride;
    in.x = norm ? copy.x.data() : input;
    in.q = copy.q.data();
    in.scale = copy.scale.data();
    in.sums = copy.sums.data();
    const auto [begin, end] = share(w.tiles(), rank);
    kernels.multiply(w, in, out, out_stride, epilogue, begin, end);
}

void Decoder::Impl::embed(int rank) {
    const auto [begin, end] = share(static_cast<std::int64_t>(lanes.size()), rank);
    for (std::int64_t m = begin; m < end; ++m) {
        const Lane& lane = lanes[static_cast<std::size_t>(m)];
        float* out = row_of(x, m, stride);
        std::fill_n(out, config.dim, 0.0f);
        for (std::int64_t k = 0; k < config.codebooks; ++k) {
            const std::int64_t code =
                sequence.codes[(lane.item * config.codebooks + k) * sequence.steps + lane.step];
            const float* from =
                embeddings[static_cast<std::size_t>(k)].as<float>() + code * config.dim;
            for (std::int64_t d = 0; d < config.dim; ++d) out[d] += from[d];
        }
        const float* position = positions.as<float>() + lane.position * config.dim;
        for (std::int64_t d = 0; d < config.dim; ++d) out[d] += position[d];
    }
}

// Attention of `count` lanes, whose queries lie in `projected`, to what `cache` holds of their rows;
// length(m) is {positions, zero slots}. write(m, head) comes before lane m reads its last part.
// Where there are too few queries for all threads, they share the parts of each.
template <typename Length, typename Write>
void Decoder::Impl::attend(int rank, const KVLayout& layout, const Cache& cache, std::int64_t count,
                           std::int64_t query_stride, const Length& length, const Write& write) {
    Scratch& own = scratch[static_cast<std::size_t>(rank)];
    const std::int64_t heads_count = config.heads, units = count * heads_count;
    const auto one_part = [&](std::int64_t m, std::int64_t head, std::int64_t part,
                              float* part_out, Part* summary) {
        const std::int64_t at = layout.offset(lanes[static_cast<std::size_t>(m)].row, head);
        const std::int64_t begin = part * kAttentionPart;
        const std::int64_t end = std::min(length(m).first, begin + kAttentionPart);
        if (end == length(m).first) write(m, head);
        kernels.attend(row_of(projected, m, query_stride) + head * head_dim,
                       cache.keys.as<std::uint8_t>() + at, cache.values.as<std::uint8_t>() + at,
                       layout.half, begin, end, head_dim, own.scores.data(), part_out, summary);
    };
    const auto finish = [&](std::int64_t m, std::int64_t head, const float* all_out,
                            const Part* summaries) {
        const auto [positions_count, pads] = length(m);
        const std::int64_t n = (positions_count + kAttentionPart - 1) / kAttentionPart;
        kernels.merge(all_out, summaries, n, pads, head_dim,
                      row_of(attended, m, stride) + head * head_dim);
    };
    if (units >= 2 * team.size()) {
        const auto [begin, end] = share(units, rank);
        for (std::int64_t unit = begin; unit < end; ++unit) {
            const std::int64_t m = unit / heads_count, head = unit % heads_count;
            for (std::int64_t p = 0; p * kAttentionPart < length(m).first; ++p) {
                one_part(m, head, p, own.parts_out.data() + p * head_dim,
                         &own.parts[static_cast<std::size_t>(p)]);
            }
            finish(m, head, own.parts_out.data(), own.parts.data());
        }
        return;
    }
    const auto [begin, end] = share(units * parts_max, rank);
    for (std::int64_t i = begin; i < end; ++i) {
        const std::int64_t unit = i % units, p = i / units, m = unit / heads_count;
        if (p * kAttentionPart >= length(m).first) continue;
        const std::int64_t slot = unit * parts_max + p;
        one_part(m, unit % heads_count, p, parts_out.as<float>() + slot * head_dim,
                 &parts[static_cast<std::size_t>(slot)]);
    }
    team.barrier();
    const auto [first, last] = share(units, rank);
    for (std::int64_t unit = first; unit < last; ++unit) {
        finish(unit / heads_count, unit % heads_count,
               parts_out.as<float>() + unit * parts_max * head_dim,
               parts.data() + unit * parts_max);
    }
}

void Decoder::Impl::self_attention(int rank, Cache& cache) {
    const auto count = static_cast<std::int64_t>(lanes.size());
    const auto write = [&](std::int64_t m, std::int64_t head) {
        const Lane& lane = lanes[static_cast<std::size_t>(m)];
        const float* k = row_of(projected, m, 3 * config.dim) + config.dim + head * head_dim;
        self.write(cache.keys.as<std::uint8_t>(), cache.values.as<std::uint8_t>(), lane.row, head,
                   lane.position, k, k + config.dim);
    };
    const auto length = [&](std::int64_t m) {
        return std::pair(lanes[static_cast<std::size_t>(m)].position + 1, std::int64_t{0});
    };
    const bool prompt = count > 1 && lanes[0].row == lanes[1].row;
    if (prompt) {  // lanes read what others write
        const auto [begin, end] = share(count * config.heads, rank);
        for (std::int64_t unit = begin; unit < end; ++unit) {
            write(unit / config.heads, unit % config.heads);
        }
        team.barrier();
    }
    attend(rank, self, cache, count, 3 * config.dim, length,
           [&](std::int64_t m, std::int64_t head) {
               if (!prompt) write(m, head);
           });
}

void Decoder::Impl::cross_attention(int rank, const Cache& cache) {
    const auto length = [&](std::int64_t m) {
        const auto row = static_cast<std::size_t>(lanes[static_cast<std::size_t>(m)].row);
        return std::pair(text_length[row], text_pads[row]);
    };
    attend(rank, text, cache, text_lanes, config.dim, length, [](std::int64_t, std::int64_t) {});
}

void Decoder::Impl::layer_pass(int rank, std::size_t l) {
    Layer& layer = layers[l];
    const auto count = static_cast<std::int64_t>(lanes.size());
    float* const stream = x.as<float>();
    multiply(rank, layer.matrices.at("qkv"), stream, stride, count, &layer.norms.at("norm1"),
             projected.as<float>(), 3 * config.dim, Epilogue::store);
    team.barrier();
    self_attention(rank, self_cache[l]);
    team.barrier();
    multiply(rank, layer.matrices.at("out"), attended.as<float>(), stride, count, nullptr, stream,
             stride, Epilogue::add);
    team.barrier();
    if (text_lanes > 0) {
        multiply(rank, layer.matrices.at("cross_q"), stream, stride, text_lanes,
                 &layer.norms.at("norm_cross"), projected.as<float>(), config.dim, Epilogue::store);
        team.barrier();
        cross_attention(rank, text_cache[l]);
        team.barrier();
        multiply(rank, layer.matrices.at("cross_out"), attended.as<float>(), stride, text_lanes,
                 nullptr, stream, stride, Epilogue::add);
        team.barrier();
    }
    multiply(rank, layer.matrices.at("ff1"), stream, stride, count, &layer.norms.at("norm2"),
             hidden.as<float>(), hidden_stride, Epilogue::gelu);
    team.barrier();
    multiply(rank, layer.matrices.at("ff2"), hidden.as<float>(), hidden_stride, count, nullptr,
             stream, stride, Epilogue::add);
    team.barrier();
}

void Decoder::Impl::pass(int rank) {
    team.barrier();
    embed(rank);
    team.barrier();
    for (std::size_t l = 0; l < layers.size(); ++l) layer_pass(rank, l);
}

// Logits of the last lanes, one per row: guidance mixes what the heads read, which is the same as
// mixing what they give.
void Decoder::Impl::heads_pass(int rank, float cfg_coef) {
    const auto count = static_cast<std::int64_t>(lanes.size());
    const std::int64_t batch = sequence.batch;
    const auto normalize = [&](std::int64_t m) {
        float* out = row_of(attended, m, stride);
        kernels.layer_norm(row_of(x, m, stride), out_norm.weight.data(), out_norm.bias.data(),
                           config.eps, config.dim, stride, out);
        return out;
    };
    const auto [begin, end] = share(batch, rank);
    for (std::int64_t b = begin; b < end; ++b) {
        float* conditional = normalize(b);
        if (count != 2 * batch) continue;
        const float* unconditional = normalize(b + batch);
        for (std::int64_t d = 0; d < config.dim; ++d) {
            conditional[d] = unconditional[d] + (conditional[d] - unconditional[d]) * cfg_coef;
        }
    }
    team.barrier();
    multiply(rank, heads, attended.as<float>(), stride, batch, nullptr, logits.as<float>(),
             config.codebooks * config.card, Epilogue::store);
    team.barrier();
}

void Decoder::Impl::sample_pass(int rank, const Sampling& sampling, std::int64_t step) {
    const auto [begin, end] = share(sequence.batch * config.codebooks, rank);
    Scratch& s = scratch[static_cast<std::size_t>(rank)];
    const auto draw = static_cast<std::uint32_t>(sampling.first_draw + step - sequence.start);
    for (std::int64_t unit = begin; unit < end; ++unit) {
        const std::int64_t b = unit / config.codebooks, k = unit % config.codebooks;
        std::int64_t& place = sequence.codes[unit * sequence.steps + step];
        if (place != -1) continue;  // a code of the prompt that the pattern delays
        if (!sequence.mask[k * sequence.steps + step]) {
            place = sequence.special;
            continue;
        }
        const ExponentialRow noise =
            sampling.greedy ? ExponentialRow(0, 0, 0, 0)
                            : ExponentialRow(sampling.seeds[b], sampling.items[b], draw,
                                             static_cast<std::uint32_t>(k));
        place = sample(kernels, logits.as<float>() + unit * config.card, config.card, sampling,
                       noise, s.probs.data());
    }
}

}  // namespace audiogen_fast
