// Python's view of the native module. Conversions only: every argument is a number, and a tensor
// is the address of its data. `audiogen_fast/ops/native.py` checks the tensors first.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "audiogen_fast/bandwidth.h"
#include "audiogen_fast/cpu_features.h"
#include "audiogen_fast/decoder.h"
#include "audiogen_fast/philox.h"
#include "audiogen_fast/rvq.h"
#include "audiogen_fast/training.h"

namespace py = pybind11;
namespace af = audiogen_fast;

namespace {

template <typename T>
T* pointer(std::uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

py::tuple philox4x32_10(std::uint32_t key0, std::uint32_t key1, std::uint32_t c0, std::uint32_t c1,
                        std::uint32_t c2, std::uint32_t c3) {
    const auto words = af::philox4x32_10({key0, key1}, {c0, c1, c2, c3});
    return py::make_tuple(words[0], words[1], words[2], words[3]);
}

void philox_exponential(std::uintptr_t out, std::uintptr_t seeds, std::uintptr_t items,
                        std::int64_t n_items, std::int64_t n_codebooks, std::int64_t card,
                        std::uint32_t step) {
    af::philox_exponential(pointer<float>(out), pointer<const std::int64_t>(seeds),
                           pointer<const std::int64_t>(items), n_items, n_codebooks, card, step);
}

void rvq_decode(std::uintptr_t out, std::uintptr_t codes,
                const std::vector<std::uintptr_t>& codebooks, std::int64_t batch,
                std::int64_t frames, std::int64_t card, std::int64_t dim) {
    std::vector<const float*> tables;
    for (const std::uintptr_t address : codebooks) tables.push_back(pointer<const float>(address));
    af::rvq_decode(pointer<float>(out), pointer<const std::int64_t>(codes), tables, batch, frames,
                   card, dim);
}

void product(std::int64_t m, std::int64_t n, std::int64_t k, std::uintptr_t a, std::int64_t a_row,
             std::int64_t a_column, std::uintptr_t b, std::int64_t b_row, std::int64_t b_column,
             std::uintptr_t out, std::int64_t out_row, float alpha, bool add, int threads) {
    af::product({m, n, k, pointer<const float>(a), a_row, a_column, pointer<const float>(b), b_row,
                 b_column, pointer<float>(out), out_row, alpha, add},
                threads);
}

using Strides = std::array<std::int64_t, 3>;

af::Heads heads(std::uintptr_t data, const Strides& strides) {
    return {pointer<const float>(data), strides[0], strides[1], strides[2]};
}

// [batch, heads, steps, dim, slots], and the addresses of lengths and pads or twice 0.
using Shape = std::array<std::int64_t, 5>;
using Limits = std::array<std::uintptr_t, 2>;

af::Attention shaped(const Shape& shape, const Limits& limits, std::uintptr_t q,
                     const Strides& q_strides, std::uintptr_t k, const Strides& k_strides,
                     std::uintptr_t v, const Strides& v_strides) {
    return {shape[0],
            shape[1],
            shape[2],
            shape[3],
            heads(q, q_strides),
            heads(k, k_strides),
            heads(v, v_strides),
            shape[4],
            pointer<const std::int64_t>(limits[0]),
            pointer<const std::int64_t>(limits[1])};
}

void attention(const Shape& shape, const Limits& limits, std::uintptr_t q, const Strides& q_strides,
               std::uintptr_t k, const Strides& k_strides, std::uintptr_t v,
               const Strides& v_strides, std::uintptr_t out, std::uintptr_t log_sums, int threads) {
    af::attention(shaped(shape, limits, q, q_strides, k, k_strides, v, v_strides),
                  pointer<float>(out), pointer<float>(log_sums), threads);
}

void attention_backward(const Shape& shape, const Limits& limits, std::uintptr_t q,
                        const Strides& q_strides, std::uintptr_t k, const Strides& k_strides,
                        std::uintptr_t v, const Strides& v_strides, std::uintptr_t grad,
                        const Strides& grad_strides, std::uintptr_t log_sums, std::uintptr_t grad_q,
                        std::uintptr_t grad_k, std::uintptr_t grad_v, int threads) {
    af::attention_backward(shaped(shape, limits, q, q_strides, k, k_strides, v, v_strides),
                           heads(grad, grad_strides), pointer<const float>(log_sums),
                           pointer<float>(grad_q), pointer<float>(grad_k), pointer<float>(grad_v),
                           threads);
}

py::dict cpu_features() {
    const af::CpuFeatures f = af::cpu_features();
    py::dict d;
    d["avx2"] = f.avx2;
    d["fma"] = f.fma;
    d["f16c"] = f.f16c;
    d["avx512f"] = f.avx512f;
    d["avx512bw"] = f.avx512bw;
    d["avx512vl"] = f.avx512vl;
    d["avx512dq"] = f.avx512dq;
    d["avx512_vnni"] = f.avx512_vnni;
    d["avx512_bf16"] = f.avx512_bf16;
    d["amx_tile"] = f.amx_tile;
    d["amx_int8"] = f.amx_int8;
    d["amx_bf16"] = f.amx_bf16;
    d["neon"] = f.neon;
    return d;
}

py::dict build_info() {
    py::dict d;
    d["compiler"] = AUDIOGEN_FAST_COMPILER;
    d["standard"] = std::to_string(__cplusplus);
    d["flags"] = AUDIOGEN_FAST_FLAGS;
    return d;
}

// A product with packed weights by itself, for tests and benchmarks of the kernels.
void packed_multiply(const std::string& format, std::int64_t group, const std::string& isa,
                     std::uintptr_t weight, std::int64_t n, std::int64_t k, std::uintptr_t bias,
                     std::uintptr_t x, std::int64_t rows, bool gelu, std::uintptr_t out) {
    af::packed_multiply(format, group, isa, pointer<const float>(weight), n, k,
                        pointer<const float>(bias), pointer<const float>(x), rows, gelu,
                        pointer<float>(out));
}

void bind_decoder(py::module_& m) {
    using release_gil = py::call_guard<py::gil_scoped_release>;
    py::class_<af::DecoderConfig>(m, "DecoderConfig")
        .def(py::init<>())
        .def_readwrite("dim", &af::DecoderConfig::dim)
        .def_readwrite("heads", &af::DecoderConfig::heads)
        .def_readwrite("layers", &af::DecoderConfig::layers)
        .def_readwrite("hidden", &af::DecoderConfig::hidden)
        .def_readwrite("card", &af::DecoderConfig::card)
        .def_readwrite("codebooks", &af::DecoderConfig::codebooks)
        .def_readwrite("rows", &af::DecoderConfig::rows)
        .def_readwrite("positions", &af::DecoderConfig::positions)
        .def_readwrite("text", &af::DecoderConfig::text)
        .def_readwrite("eps", &af::DecoderConfig::eps)
        .def_readwrite("format", &af::DecoderConfig::format)
        .def_readwrite("kv_format", &af::DecoderConfig::kv_format)
        .def_readwrite("group", &af::DecoderConfig::group)
        .def_readwrite("threads", &af::DecoderConfig::threads)
        .def_readwrite("isa", &af::DecoderConfig::isa);
    py::class_<af::Decoder>(m, "Decoder")
        .def(py::init<const af::DecoderConfig&>())
        .def("set_matrix",
             [](af::Decoder& d, const std::string& name, std::int64_t layer, std::uintptr_t data,
                std::int64_t n, std::int64_t k, std::uintptr_t bias) {
                 d.set_matrix(name, layer, pointer<const float>(data), n, k,
                              pointer<const float>(bias));
             },
             release_gil())
        .def("set_packed",
             [](af::Decoder& d, const std::string& name, std::int64_t layer, std::uintptr_t data,
                std::int64_t data_bytes, std::uintptr_t scales, std::int64_t scale_bytes,
                std::uintptr_t bias) {
                 d.set_packed(name, layer, pointer<const void>(data), data_bytes,
                              pointer<const void>(scales), scale_bytes,
                              pointer<const float>(bias));
             },
             release_gil())
        .def("packed_matrix",
             [](const af::Decoder& d, const std::string& name, std::int64_t layer) {
                 const af::PackedMatrix m = d.packed_matrix(name, layer);
                 return py::make_tuple(reinterpret_cast<std::uintptr_t>(m.data), m.data_bytes,
                                       reinterpret_cast<std::uintptr_t>(m.scales), m.scale_bytes);
             })
        .def("set_norm",
             [](af::Decoder& d, const std::string& name, std::int64_t layer, std::uintptr_t weight,
                std::uintptr_t bias) {
                 d.set_norm(name, layer, pointer<const float>(weight), pointer<const float>(bias));
             })
        .def("set_embedding",
             [](af::Decoder& d, std::int64_t codebook, std::uintptr_t data) {
                 d.set_embedding(codebook, pointer<const float>(data));
             })
        .def("set_positions",
             [](af::Decoder& d, std::uintptr_t data, std::int64_t count) {
                 d.set_positions(pointer<const float>(data), count);
             })
        .def("resize", &af::Decoder::resize)
        .def("begin", &af::Decoder::begin)
        .def("set_text",
             [](af::Decoder& d, std::int64_t row, std::uintptr_t vectors, std::int64_t length,
                std::int64_t pads) { d.set_text(row, pointer<const float>(vectors), length, pads); },
             release_gil())
        .def("run",
             [](af::Decoder& d, std::uintptr_t codes, std::uintptr_t mask, std::int64_t batch,
                std::int64_t steps, std::int64_t start, std::int64_t special, bool greedy,
                float temperature, std::int64_t top_k, float top_p, std::uint32_t first_draw,
                std::uintptr_t seeds, std::uintptr_t items, float cfg_coef, std::int64_t from,
                std::int64_t to) {
                 const af::Sequence sequence{pointer<std::int64_t>(codes),
                                             pointer<const std::uint8_t>(mask),
                                             batch,
                                             steps,
                                             start,
                                             special};
                 af::Sampling sampling;
                 sampling.greedy = greedy;
                 sampling.temperature = temperature;
                 sampling.top_k = top_k;
                 sampling.top_p = top_p;
                 sampling.first_draw = first_draw;
                 sampling.seeds = pointer<const std::int64_t>(seeds);
                 sampling.items = pointer<const std::int64_t>(items);
                 d.run(sequence, sampling, cfg_coef, from, to);
             },
             release_gil())
        .def("last_logits",
             [](const af::Decoder& d, std::uintptr_t out) { d.last_logits(pointer<float>(out)); })
        .def_property_readonly("weight_bytes", &af::Decoder::weight_bytes)
        .def_property_readonly("cache_bytes", &af::Decoder::cache_bytes)
        .def_property_readonly("isa", &af::Decoder::isa)
        .def_property_readonly("threads", &af::Decoder::threads);
}

}  // namespace

PYBIND11_MODULE(_native, m) {
    using release_gil = py::call_guard<py::gil_scoped_release>;
    m.doc() = "CPU kernels of audiogen_fast; call them through audiogen_fast.ops.native.";
    m.def("philox4x32_10", &philox4x32_10, py::arg("key0"), py::arg("key1"), py::arg("c0"),
          py::arg("c1"), py::arg("c2"), py::arg("c3"));
    m.def("philox_exponential", &philox_exponential, py::arg("out"), py::arg("seeds"),
          py::arg("items"), py::arg("n_items"), py::arg("n_codebooks"), py::arg("card"),
          py::arg("step"), release_gil());
    m.def("rvq_decode", &rvq_decode, py::arg("out"), py::arg("codes"), py::arg("codebooks"),
          py::arg("batch"), py::arg("frames"), py::arg("card"), py::arg("dim"), release_gil());
    m.def("read_bandwidth", &af::read_bandwidth, py::arg("bytes"), py::arg("threads"),
          py::arg("rounds"), release_gil());
    m.def("cpu_features", &cpu_features);
    m.def("build_info", &build_info);
    m.def("packed_multiply", &packed_multiply, release_gil());
    m.def("available_isas", &af::available_isas);
    m.def("training_ops_available", &af::training_ops_available);
    m.def("product", &product, release_gil());
    m.def("attention", &attention, release_gil());
    m.def("attention_backward", &attention_backward, release_gil());
    bind_decoder(m);
}
