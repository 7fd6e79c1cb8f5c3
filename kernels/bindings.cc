// The kernels one by one, for tests against the NumPy reference. Arrays are C-contiguous.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <cstring>
#include <vector>

#include "kernels/kernels.h"
#include "kernels/kv_cache.h"

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

std::vector<uint8_t> interleaved_rows(const std::string& isa, int format, nb::bytes weights,
                                      size_t bytes, int n_cols) {
  const Kernels* kernels = table(isa);
  const InterleaveKernel interleave =
      kernels->interleave != nullptr ? kernels->interleave(format) : nullptr;
  require(interleave != nullptr, "this format stays as it is in the file");
  std::vector<uint8_t> rows(weights.size()), scratch(matmul_scratch_bytes(n_cols));
  std::memcpy(rows.data(), weights.c_str(), rows.size());
  interleave(rows.data(), bytes, static_cast<int>(rows.size() / bytes), scratch.data());
  return rows;
}

nb::bytes interleave(const std::string& isa, int format, nb::bytes weights, int n_cols) {
  const size_t bytes = row_bytes(format, n_cols);
  require(bytes != 0 && weights.size() % bytes == 0, "shapes disagree");
  const auto rows = interleaved_rows(isa, format, weights, bytes, n_cols);
  return nb::bytes(rows.data(), rows.size());
}

// y (tokens, rows) = x (tokens, cols) · weights^T; `weights` are rows in the format's file layout
void matmul(const std::string& isa, int format, nb::bytes weights, Array<const float, 2> x,
            Array<float, 2> y, bool accumulate, bool interleaved) {
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
  std::vector<uint8_t> copy;
  if (interleaved) copy = interleaved_rows(isa, format, weights, bytes, n_cols);
  const auto* data = reinterpret_cast<const uint8_t*>(weights.c_str());
  const Rows rows = {interleaved ? copy.data() : data, bytes, n_rows, n_cols, interleaved};
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

// q (tokens, heads, head_dim), of the last tokens of k and v (positions, head_dim), which are
// stored in the KV format first.
void attention(const std::string& isa, const std::string& kv_format, Array<const float, 3> q,
               Array<const float, 2> k, Array<const float, 2> v, float scale, Array<float, 3> out,
               int window, float cap, bool by_spans) {
  const Kernels* kernels = table(isa);
  const int format = kv_format_named(kv_format.c_str());
  const int n_tokens = static_cast<int>(q.shape(0)), n_heads = static_cast<int>(q.shape(1));
  const int dim = static_cast<int>(q.shape(2)), n = static_cast<int>(k.shape(0));
  require(format >= 0, "unknown KV format");
  require(k.shape(1) == q.shape(2) && v.shape(0) == k.shape(0) && v.shape(1) == k.shape(1) &&
              out.shape(0) == q.shape(0) && out.shape(1) == q.shape(1) &&
              out.shape(2) == q.shape(2) && n_tokens >= 1 && n_tokens <= n && window >= 0 &&
              n_tokens * n_heads <= kAttentionQueries && (!by_spans || n_tokens == 1),
          "shapes disagree");
  const size_t bytes = kv_head_bytes(format, dim, k.shape(0));
  std::vector<uint8_t> keys(bytes), values(bytes), scratch(attention_scratch_bytes(dim) + 64);
  for (int p = 0; p < n; ++p) {
    store_kv(kernels, format, true, k.data() + size_t{1} * p * dim, dim, keys.data(), p);
    store_kv(kernels, format, false, v.data() + size_t{1} * p * dim, dim, values.data(), p);
  }
  const std::vector<float> scales(n_tokens, scale);
  AttentionArgs args = {format,
                        q.data(),
                        out.data(),
                        size_t{1} * n_heads * dim,
                        keys.data(),
                        values.data(),
                        n_tokens,
                        n_heads,
                        dim,
                        n,
                        n - n_tokens,
                        window,
                        scales.data(),
                        cap,
                        -1,
                        scratch.data() + 64 - reinterpret_cast<uintptr_t>(scratch.data()) % 64};
  if (!by_spans) return kernels->attention(&args);
  const int first = (window > 0 && n > window ? n - window : 0) / kAttentionSpan;
  const size_t row = size_t{1} * n_heads * (dim + 2);
  std::vector<float> spans((n_spans(n) - first) * row);
  for (args.span = first; args.span < n_spans(n); ++args.span) {
    args.out = spans.data() + (args.span - first) * row;
    kernels->attention(&args);
  }
  kernels->merge_spans(spans.data(), n_spans(n) - first, n_heads, dim, out.data());
}

}  // namespace

NB_MODULE(_kernels, m) {
  m.doc() = "Kernels by ISA name: one of ISAS, which run here, or 'auto' for the last of them.";
  nb::list isas;
  for (const char* name : kKernelNames)
    if (kernels_named(name) != nullptr) isas.append(name);
  m.attr("ISAS") = isas;
  m.def("quantize", &quantize, "isa"_a, "x"_a, "codes"_a, "scales"_a, "sums"_a);
  m.def("matmul", &matmul, "isa"_a, "format"_a, "weights"_a, "x"_a, "y"_a, "accumulate"_a = false,
        "interleaved"_a = false);
  m.def(
      "can_interleave",
      [](const std::string& isa, int format) {
        const Kernels* kernels = table(isa);
        return kernels->interleave != nullptr && kernels->interleave(format) != nullptr;
      },
      "isa"_a, "format"_a);
  m.def("interleave", &interleave, "isa"_a, "format"_a, "weights"_a, "n_cols"_a);
  m.def("rms_norm", &rms_norm, "isa"_a, "x"_a, "weight"_a, "eps"_a, "y"_a);
  m.def("silu_gate", &silu_gate, "isa"_a, "gate"_a, "up"_a);
  m.def("gelu_gate", &gelu_gate, "isa"_a, "gate"_a, "up"_a);
  m.def("softcap", &softcap, "isa"_a, "x"_a, "cap"_a);
  m.def("attention", &attention, "isa"_a, "kv_format"_a, "q"_a, "k"_a, "v"_a, "scale"_a, "out"_a,
        "window"_a = 0, "cap"_a = 0.0f, "by_spans"_a = false);
  m.def(
      "quantize_kv",
      [](const std::string& isa, Array<const float, 1> x, Array<int8_t, 1> codes,
         Array<uint16_t, 1> scales) {
        const int n = static_cast<int>(x.size());
        require(codes.size() == padded_columns(n) && scales.size() == codes.size() / 32,
                "shapes disagree");
        table(isa)->quantize_kv(x.data(), n, codes.data(), scales.data());
      },
      "isa"_a, "x"_a, "codes"_a, "scales"_a);
  m.def(
      "rope",
      [](const std::string& isa, Array<float, 2> heads, Array<const float, 2> table_of_pairs,
         bool halves) {
        const int n_pairs = static_cast<int>(table_of_pairs.shape(1));
        require(table_of_pairs.shape(0) == 2 && 2 * table_of_pairs.shape(1) <= heads.shape(1),
                "shapes disagree");
        table(isa)->rope(heads.data(), static_cast<int>(heads.shape(0)),
                         static_cast<int>(heads.shape(1)), table_of_pairs.data(), n_pairs, halves);
      },
      "isa"_a, "heads"_a, "table"_a, "halves"_a);
  m.def(
      "add",
      [](const std::string& isa, Array<float, 1> y, Array<const float, 1> x, float factor) {
        require(x.size() == y.size(), "shapes disagree");
        table(isa)->add(y.data(), x.data(), factor, static_cast<int>(y.size()));
      },
      "isa"_a, "y"_a, "x"_a, "factor"_a);
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
