// Every weight format on arbitrary bytes: scalar and SIMD kernels give the same bits, write only
// where they may, and rows can be computed apart. NaN and infinite scales are bytes like others.
#include "kernels/kernels.h"

#include "tests/fuzz/native/input.h"
#include "tests/native/matmul_problem.h"

namespace edge_rt {
namespace {

using fuzz::Input;
using test::Aligned;
using test::aligned_memory;
using test::Exact;
using test::kAllFormats;
using test::same_bits;
using test::tables;

// Weights whose arithmetic stays finite have one right result; where a product is NaN only its
// being one is.
void matmul(Input& in) {
  const int format = kAllFormats[in.between(0, std::size(kAllFormats) - 1)];
  const bool blocks = is_block_format(format);
  const int unit = blocks ? test::layout_of(format).columns : 1;
  const int cols = unit * static_cast<int>(in.between(1, blocks ? (unit == 32 ? 12 : 3) : 70));
  const int rows = static_cast<int>(in.between(1, 19));
  const int tokens = static_cast<int>(in.between(1, 9));
  const size_t x_stride = cols + (blocks ? 32 : 1) * in.between(0, 2);
  const size_t y_stride = rows + in.between(0, 5);
  const bool accumulate = in.flag();
  const size_t phase = in.between(0, 3), bytes = row_bytes(format, cols);
  const bool from_floats = in.flag();
  const auto span = [&](size_t stride, int width) { return (tokens - 1) * stride + width; };
  Exact<float> values(span(x_stride, cols)), y(span(y_stride, rows));
  Exact<int8_t> codes(blocks ? values.size() : 0);
  Exact<float> scales(codes.size() / kBlockColumns);
  Exact<int16_t> sums(scales.size() * 2);
  Exact<uint8_t> weights(phase + bytes * rows);
  in.fill(weights.data(), weights.size());
  in.fill(values.data(), values.size() * sizeof(float));
  in.fill(y.data(), y.size() * sizeof(float));
  if (blocks && from_floats) {
    kernels_ref()->quantize(values.data(), static_cast<int>(values.size()), codes.data(),
                            scales.data(), sums.data());
  } else if (blocks) {  // any codes of the contract, any scales
    in.fill(codes.data(), codes.size());
    in.fill(scales.data(), scales.size() * sizeof(float));
    for (size_t i = 0; i < codes.size(); ++i) {
      if (codes[i] == -128) codes[i] = -127;
      sums[i / 16] = static_cast<int16_t>(sums[i / 16] + codes[i]);
    }
  }
  const Aligned<uint8_t> scratch = aligned_memory<uint8_t>(matmul_scratch_bytes(cols), 64);
  const auto run = [&](const Kernels* kernels, Exact<float>& out, int row, int n, int token,
                       int m) {
    const size_t at = token * x_stride;
    const Rows w = {weights.data() + phase + row * bytes, bytes, n, cols};
    Activations x = {values.data() + at, nullptr, nullptr, nullptr, x_stride};
    if (blocks)
      x = {nullptr, codes.data() + at, scales.data() + at / 32, sums.data() + at / 16, x_stride};
    const Output output = {out.data() + token * y_stride + row, y_stride, accumulate};
    kernels->matmul(format)(&w, &x, m, &output, scratch.get());
  };
  Exact<float> truth = y.copy();
  run(kernels_ref(), truth, 0, rows, 0, tokens);
  for (const Kernels* kernels : tables()) {
    Exact<float> out = y.copy(), apart = y.copy();
    run(kernels, out, 0, rows, 0, tokens);
    REQUIRE(same_bits(out, truth));
    for (int row = 0, n; row < rows; row += n) {
      n = static_cast<int>(in.between(1, rows - row));
      for (int token = 0, m; token < tokens; token += m) {
        m = static_cast<int>(in.between(1, tokens - token));
        run(kernels, apart, row, n, token, m);
      }
    }
    REQUIRE(same_bits(apart, truth));
  }
  Exact<float> row(cols);
  for (int r = 0; r < rows; ++r)
    dequantize_row(format, weights.data() + phase + r * bytes, cols, row.data());
  if (!blocks && cols > 1)  // embedding rows and norms are read in pieces of any length
    dequantize_row(format, weights.data() + phase, static_cast<int>(in.between(1, cols)),
                   row.data());
}

Exact<float> floats(Input& in, int n) {
  Exact<float> x(n);
  in.fill(x.data(), n * sizeof(float));
  return x;
}

void vectors(Input& in) {
  const int n = static_cast<int>(in.between(1, 130)), whole = 32 * ((n + 31) / 32);
  const Exact<float> a = floats(in, whole), b = floats(in, whole);
  const float value = in.take<float>();
  std::vector<Exact<float>> results;
  std::vector<Exact<uint16_t>> halves;
  for (const Kernels* kernels : tables()) {
    Exact<float> y(n);
    kernels->rms_norm(a.data(), b.data(), n, value, y.data());
    results.push_back(std::move(y));
    for (auto gate : {kernels->silu_gate, kernels->gelu_gate}) {
      Exact<float> g(n);
      std::memcpy(g.data(), a.data(), n * sizeof(float));
      gate(g.data(), b.data(), n);
      results.push_back(std::move(g));
    }
    Exact<float> capped(n);
    std::memcpy(capped.data(), a.data(), n * sizeof(float));
    kernels->softcap(capped.data(), n, value);
    results.push_back(std::move(capped));
    Exact<uint16_t> half(n);
    kernels->to_half(a.data(), half.data(), n);
    halves.push_back(std::move(half));
    Exact<int8_t> codes(whole);
    Exact<float> d(whole / 32);
    Exact<int16_t> s(whole / 16);
    kernels->quantize(a.data(), whole, codes.data(), d.data(), s.data());
    for (int i = 0, sum = 0; i < whole; ++i) {
      REQUIRE(codes[i] >= -127);
      sum = (i % 16 ? sum : 0) + codes[i];
      if (i % 16 == 15) REQUIRE(sum == s[i / 16]);
    }
    Exact<float> as_floats(whole);
    for (int i = 0; i < whole; ++i) as_floats[i] = codes[i];
    results.push_back(std::move(as_floats));
    results.push_back(std::move(d));
  }
  const size_t per_table = results.size() / tables().size();
  for (size_t i = per_table; i < results.size(); ++i)
    REQUIRE(same_bits(results[i], results[i % per_table]));
  for (const auto& half : halves) REQUIRE(half == halves[0]);
}

}  // namespace
}  // namespace edge_rt

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  edge_rt::fuzz::Input in(data, size);
  in.take<uint8_t>() % 4 ? edge_rt::matmul(in) : edge_rt::vectors(in);
  return 0;
}
