// The kernels one by one, for tests against the NumPy reference. Arrays are C-contiguous.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <vector>

#include "kernels/kernels.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace edge_rt {
namespace {

template <typename T, size_t kDims>
using Array = nb::ndarray<T, nb::ndim<kDims>, nb::c_contig, nb::device::cpu>;

const Kernels* table(const std::string& isa) {
  const Kernels* kernels = kernels_named(isa.c_str());
  if (kernels == nullptr) throw nb::value_error(("no kernels for ISA '" + isa + "' here").c_str());
  return kernels;
}

void require(bool condition, const char* what) {
  if (!condition) throw nb::value_error(what);
}

void quantize(const std::string& isa, Array<const float, 2> x, Array<int8_t, 2> codes,
              Array<float, 2> scales, Array<int16_t, 2> sums) {
  const size_t n = x.shape(1), blocks = n / kBlockColumns;
  require(n % kBlockColumns == 0 && codes.shape(0) == x.shape(0) && codes.shape(1) == n &&
              scales.shape(0) == x.shape(0) && scales.shape(1) == blocks &&
              sums.shape(0) == x.shape(0) && sums.shape(1) == 2 * blocks,
          "shapes disagree");
  for (size_t t = 0; t < x.shape(0); ++t)
    table(isa)->quantize(x.data() + t * n, static_cast<int>(n), codes.data() + t * n,
                         scales.data() + t * blocks, sums.data() + 2 * t * blocks);
}

// y (tokens, rows) = x (tokens, cols) · weights^T; `weights` are rows in the format's file layout
void matmul(const std::string& isa, int format, nb::bytes weights, Array<const float, 2> x,
            Array<float, 2> y, bool accumulate) {
  const int n_rows = static_cast<int>(y.shape(1)), n_cols = static_cast<int>(x.shape(1));
  const int n_tokens = static_cast<int>(x.shape(0));
  const size_t bytes = row_bytes(format, n_cols);
  require(bytes != 0 && weights.size() == bytes * n_rows && y.shape(0) == x.shape(0),
          "shapes disagree");
  std::vector<int8_t> codes(x.size());
  std::vector<float> scales(x.size() / kBlockColumns);
  std::vector<int16_t> sums(x.size() / kBlockColumns * 2);
  if (is_block_format(format))
    for (int t = 0; t < n_tokens; ++t)
      table(isa)->quantize(x.data() + t * n_cols, n_cols, codes.data() + t * n_cols,
                           scales.data() + t * (n_cols / kBlockColumns),
                           sums.data() + 2 * t * (n_cols / kBlockColumns));
  std::vector<uint8_t> scratch(matmul_scratch_bytes(n_cols));
  const Rows rows = {reinterpret_cast<const uint8_t*>(weights.c_str()), bytes, n_rows, n_cols};
  const Activations a = {x.data(), codes.data(), scales.data(), sums.data(),
                         static_cast<size_t>(n_cols)};
  const Output out = {y.data(), static_cast<size_t>(n_rows), accumulate};
  table(isa)->matmul(format)(&rows, &a, n_tokens, &out, scratch.data());
}

void rms_norm(const std::string& isa, Array<const float, 1> x, Array<const float, 1> weight,
              float eps, Array<float, 1> y) {
  require(x.size() == weight.size() && x.size() == y.size(), "shapes disagree");
  table(isa)->rms_norm(x.data(), weight.data(), static_cast<int>(x.size()), eps, y.data());
}

void silu_gate(const std::string& isa, Array<float, 1> gate, Array<const float, 1> up) {
  require(gate.size() == up.size(), "shapes disagree");
  table(isa)->silu_gate(gate.data(), up.data(), static_cast<int>(gate.size()));
}

void gelu_gate(const std::string& isa, Array<float, 1> gate, Array<const float, 1> up) {
  require(gate.size() == up.size(), "shapes disagree");
  table(isa)->gelu_gate(gate.data(), up.data(), static_cast<int>(gate.size()));
}

void softcap(const std::string& isa, Array<float, 1> x, float cap) {
  table(isa)->softcap(x.data(), static_cast<int>(x.size()), cap);
}

template <typename Kv>
void attention(const std::string& isa, Array<const float, 1> q, Array<const Kv, 2> k,
               Array<const Kv, 2> v, float scale, Array<float, 1> out, int first, float cap) {
  require(k.shape(1) == q.size() && v.shape(1) == q.size() && k.shape(0) == v.shape(0) &&
              out.size() == q.size() && first >= 0 && static_cast<size_t>(first) < k.shape(0),
          "shapes disagree");
  const AttentionArgs args = {q.data(),
                              k.data(),
                              v.data(),
                              out.data(),
                              static_cast<int>(q.size()),
                              static_cast<int>(k.shape(0)),
                              scale,
                              first,
                              cap,
                              static_cast<int>(k.shape(0))};
  (sizeof(Kv) == 2 ? table(isa)->attention_f16 : table(isa)->attention_f32)(&args);
}

}  // namespace

NB_MODULE(_kernels, m) {
  m.doc() = "Kernels by ISA name: one of ISAS, which run here, or 'auto' for the last of them.";
  nb::list isas;
  for (const char* name : kKernelNames)
    if (kernels_named(name) != nullptr) isas.append(name);
  m.attr("ISAS") = isas;
  m.def("quantize", &quantize, "isa"_a, "x"_a, "codes"_a, "scales"_a, "sums"_a);
  m.def("matmul", &matmul, "isa"_a, "format"_a, "weights"_a, "x"_a, "y"_a, "accumulate"_a = false);
  m.def("rms_norm", &rms_norm, "isa"_a, "x"_a, "weight"_a, "eps"_a, "y"_a);
  m.def("silu_gate", &silu_gate, "isa"_a, "gate"_a, "up"_a);
  m.def("gelu_gate", &gelu_gate, "isa"_a, "gate"_a, "up"_a);
  m.def("softcap", &softcap, "isa"_a, "x"_a, "cap"_a);
  m.def("attention_f16", &attention<uint16_t>, "isa"_a, "q"_a, "k"_a, "v"_a, "scale"_a, "out"_a,
        "first"_a = 0, "cap"_a = 0.0f);
  m.def("attention_f32", &attention<float>, "isa"_a, "q"_a, "k"_a, "v"_a, "scale"_a, "out"_a,
        "first"_a = 0, "cap"_a = 0.0f);
  m.def(
      "to_half",
      [](const std::string& isa, Array<const float, 1> x, Array<uint16_t, 1> y) {
        require(x.size() == y.size(), "shapes disagree");
        table(isa)->to_half(x.data(), y.data(), static_cast<int>(x.size()));
      },
      "isa"_a, "x"_a, "y"_a);
  m.def(
      "dequantize_row",
      [](int format, nb::bytes row, Array<float, 1> out) {
        require(row.size() == row_bytes(format, static_cast<int>(out.size())), "shapes disagree");
        dequantize_row(format, reinterpret_cast<const uint8_t*>(row.c_str()),
                       static_cast<int>(out.size()), out.data());
      },
      "format"_a, "row"_a, "out"_a);
}

}  // namespace edge_rt
