// Python's view of the native module. Conversions only: every argument is a number, and a tensor
// is the address of its data. `audiogen_fast/ops/native.py` checks the tensors first.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <string>
#include <vector>

#include "audiogen_fast/cpu_features.h"
#include "audiogen_fast/philox.h"
#include "audiogen_fast/rvq.h"

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

py::dict cpu_features() {
    const af::CpuFeatures f = af::cpu_features();
    py::dict d;
    d["avx2"] = f.avx2;
    d["fma"] = f.fma;
    d["f16c"] = f.f16c;
    d["avx512f"] = f.avx512f;
    d["avx512bw"] = f.avx512bw;
    d["avx512vl"] = f.avx512vl;
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
    m.def("cpu_features", &cpu_features);
    m.def("build_info", &build_info);
}
