// Scalar and SIMD kernels give the same bits, the scalar ones give the right values.
#include "kernels/kernels.h"

#include <cmath>
#include <limits>
#include <vector>

#include "kernels/half.h"
#include "tests/native/check.h"

namespace edge_rt {
namespace {

using test::Aligned;
using test::aligned_memory;
using test::Exact;
using test::Random;

constexpr int kFormats[] = {kF32, kF16, kBF16, kQ4_0, kQ4_1, kQ8_0};
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

bool quantized(int format) { return format != kF32 && format != kF16 && format != kBF16; }

std::vector<const Kernels*> tables() {
  std::vector<const Kernels*> all = {kernels_ref()};
  if (kernels_avx2() != nullptr) all.push_back(kernels_avx2());
  return all;
}

// Equal bits, where any NaN equals any NaN: which payload survives an operation is not specified.
bool same_bits(const Exact<float>& a, const Exact<float>& b) {
  for (size_t i = 0; i < a.size(); ++i)
    if (bits_of(a[i]) != bits_of(b[i]) && !(std::isnan(a[i]) && std::isnan(b[i]))) return false;
  return a.size() == b.size();
}

uint16_t random_half(Random& random) {  // any finite half; mostly of a weight's size
  if (random.chance(0.9)) return float_to_half(random.normal(0.05f));
  uint16_t h;
  do h = static_cast<uint16_t>(random.bits());
  while ((h & 0x7c00) == 0x7c00);
  return h;
}

void fill_weights(Random& random, int format, uint8_t* p, int n_rows, int n_cols) {
  const size_t bytes = row_bytes(format, n_cols);
  if (quantized(format)) {
    for (size_t i = 0; i < bytes * n_rows; ++i) p[i] = static_cast<uint8_t>(random.bits());
    const size_t block = bytes / (n_cols / kBlockColumns);
    for (size_t i = 0; i < bytes * n_rows; i += block) {
      const uint16_t d = random_half(random), m = random_half(random);
      std::memcpy(p + i, &d, 2);
      if (format == kQ4_1) std::memcpy(p + i + 2, &m, 2);
    }
    return;
  }
  for (size_t i = 0; i < static_cast<size_t>(n_rows) * n_cols; ++i) {
    const float value = random.normal();
    const uint16_t half = random_half(random), brain = static_cast<uint16_t>(bits_of(value) >> 16);
    if (format == kF32) std::memcpy(p + 4 * i, &value, 4);
    if (format == kF16) std::memcpy(p + 2 * i, &half, 2);
    if (format == kBF16) std::memcpy(p + 2 * i, &brain, 2);
  }
}

// One matmul problem; the last token and the last row end where their memory ends.
struct Problem {
  int format, n_rows, n_cols, n_tokens;
  size_t x_stride, y_stride;
  bool accumulate;
  int phase;  // rows need no alignment
  Exact<uint8_t> weights;
  Exact<float> values;
  Exact<int8_t> codes;
  Exact<float> scales;
  Exact<int32_t> sums;
  Exact<float> y;

  static size_t span(int n, size_t stride, int width) { return (n - 1) * stride + width; }

  Problem(Random& random, int format_, int rows, int cols, int tokens)
      : format(format_),
        n_rows(rows),
        n_cols(cols),
        n_tokens(tokens),
        x_stride(cols + (quantized(format) ? 32 : 1) * random.between(0, 2)),
        y_stride(rows + random.between(0, 5)),
        accumulate(random.chance(0.5)),
        phase(static_cast<int>(random.between(0, 3))),
        weights(phase + row_bytes(format, cols) * rows),
        values(span(tokens, x_stride, cols)),
        codes(quantized(format) ? values.size() : 0),
        scales(codes.size() / kBlockColumns),
        sums(scales.size()),
        y(span(tokens, y_stride, rows)) {
    fill_weights(random, format, weights.data() + phase, rows, cols);
    for (size_t i = 0; i < values.size(); ++i) values[i] = random.normal();
    for (size_t i = 0; i < y.size(); ++i) y[i] = random.normal();
    if (!quantized(format)) return;
    kernels_ref()->quantize(values.data(), static_cast<int>(values.size()), codes.data(),
                            scales.data(), sums.data());
  }

  // Rows [row, row + rows) of tokens [token, token + tokens).
  void run(const Kernels* kernels, Exact<float>& out, int row, int rows, int token,
           int tokens) const {
    const size_t at = token * x_stride, block = at / kBlockColumns;
    const Rows w = {weights.data() + phase + row * row_bytes(format, n_cols),
                    row_bytes(format, n_cols), rows, n_cols};
    const Activations x = {values.data() + at, codes.data() + (codes.size() ? at : 0),
                           scales.data() + (codes.size() ? block : 0),
                           sums.data() + (codes.size() ? block : 0), x_stride};
    const Output output = {out.data() + token * y_stride + row, y_stride, accumulate};
    const Aligned<uint8_t> scratch = aligned_memory<uint8_t>(matmul_scratch_bytes(n_cols), 64);
    matmul_for(kernels, format)(&w, &x, tokens, &output, scratch.get());
  }
};

// Against double arithmetic on the dequantized row: each rounding may lose half a unit of the sum
// of magnitudes seen so far.
void check_values(const Problem& p, const Exact<float>& y) {
  std::vector<float> row(p.n_cols);
  for (int r = 0; r < p.n_rows; ++r) {
    dequantize_row(p.format, p.weights.data() + p.phase + r * row_bytes(p.format, p.n_cols),
                   p.n_cols, row.data());
    for (int t = 0; t < p.n_tokens; ++t) {
      double sum = 0, magnitude = 0;
      for (int j = 0; j < p.n_cols; ++j) {
        const size_t i = t * p.x_stride + j;
        const double x = quantized(p.format)
                             ? static_cast<double>(p.codes[i]) * p.scales[i / kBlockColumns]
                             : p.values[i];
        sum += row[j] * x;
        magnitude += std::fabs(row[j] * x);
      }
      if (p.format == kQ4_1 || p.format == kQ4_0)
        magnitude *= 32;  // d * sum and m * sum may cancel
      const size_t at = t * p.y_stride + r;
      const double expected = sum + (p.accumulate ? p.y[at] : 0.0);
      CHECK_CASE(
          std::fabs(y[at] - expected) <= (magnitude + std::fabs(expected)) * 1e-6 * 4 + 1e-30,
          "format %d rows %d cols %d: %g is not %g", p.format, p.n_rows, p.n_cols, y[at], expected);
    }
  }
}

void test_matmul() {
  Random random(1);
  for (int round = 0; round < 600; ++round) {
    const int format = kFormats[round % 6];
    const int rows = static_cast<int>(random.between(1, 41));
    const int cols =
        static_cast<int>(quantized(format) ? 32 * random.between(1, 9) : random.between(1, 131));
    const int tokens = static_cast<int>(random.between(1, 11));
    const Problem p(random, format, rows, cols, tokens);
    Exact<float> truth = p.y.copy();
    p.run(kernels_ref(), truth, 0, rows, 0, tokens);
    check_values(p, truth);
    for (const Kernels* kernels : tables()) {
      Exact<float> whole = p.y.copy();
      p.run(kernels, whole, 0, rows, 0, tokens);
      CHECK_CASE(whole == truth, "%s format %d rows %d cols %d tokens %d", kernels->name, format,
                 rows, cols, tokens);
      Exact<float> split = p.y.copy();
      for (int r = 0, n; r < rows; r += n) {
        n = static_cast<int>(random.between(1, rows - r));
        for (int t = 0, m; t < tokens; t += m) {
          m = static_cast<int>(random.between(1, tokens - t));
          p.run(kernels, split, r, n, t, m);
        }
      }
      CHECK_CASE(split == truth, "%s format %d rows %d cols %d tokens %d, split", kernels->name,
                 format, rows, cols, tokens);
    }
  }
}

void test_extreme_codes() {  // every product of codes at its largest: no step may saturate
  for (int format : {kQ4_0, kQ4_1, kQ8_0}) {
    for (int weight : {0x00, 0x7f, 0x80, 0xff}) {
      for (int code : {-127, 127}) {
        Random random(2);
        Problem p(random, format, 9, 64, 3);
        p.accumulate = false;
        for (size_t i = 0; i < p.codes.size(); ++i) p.codes[i] = static_cast<int8_t>(code);
        for (size_t i = 0; i < p.sums.size(); ++i) p.sums[i] = 32 * code;
        const size_t block = row_bytes(format, 32), head = format == kQ4_1 ? 4 : 2;
        for (size_t i = p.phase; i < p.weights.size(); i += block)
          std::memset(p.weights.data() + i + head, weight, block - head);
        Exact<float> truth = p.y.copy();
        p.run(kernels_ref(), truth, 0, 9, 0, 3);
        check_values(p, truth);
        for (const Kernels* kernels : tables()) {
          Exact<float> y = p.y.copy();
          p.run(kernels, y, 0, 9, 0, 3);
          CHECK_CASE(y == truth, "%s format %d weight %d code %d", kernels->name, format, weight,
                     code);
        }
      }
    }
  }
}

double half_value(uint16_t h) {  // from the definition
  const int exponent = (h >> 10) & 31, mantissa = h & 0x3ff;
  const double magnitude = exponent == 31 ? (mantissa ? NAN : INFINITY)
                           : exponent     ? std::ldexp(1024 + mantissa, exponent - 25)
                                          : std::ldexp(mantissa, -24);
  return h & 0x8000 ? -magnitude : magnitude;
}

void test_every_half() {
  constexpr int kAll = 65536;
  for (int h = 0; h < kAll; ++h) {
    const float f = half_to_float(static_cast<uint16_t>(h));
    const double expected = half_value(static_cast<uint16_t>(h));
    if (std::isnan(expected)) {
      CHECK_CASE(std::isnan(f) && float_to_half(f) == (h | 0x200), "half %x", h);
    } else {
      CHECK_CASE(f == expected && std::signbit(f) == (h >= 0x8000), "half %x", h);
      CHECK_CASE(float_to_half(f) == h, "half %x", h);
    }
  }
  // The same halves as weights and as block scales, through each ISA's own conversion.
  Exact<uint8_t> rows(kAll * row_bytes(kF16, 8)), blocks(kAll * sizeof(BlockQ8_0));
  for (int h = 0; h < kAll; ++h) {
    BlockQ8_0 block = {static_cast<uint16_t>(h), {1}};
    std::memcpy(rows.data() + h * row_bytes(kF16, 8), &block.d, 2);
    std::memcpy(blocks.data() + h * sizeof block, &block, sizeof block);
  }
  const float values[8] = {1};
  const int8_t codes[32] = {1};
  const float scale = 1;
  const int32_t sum = 1;
  const Activations x = {values, codes, &scale, &sum, 32};
  const Aligned<uint8_t> scratch = aligned_memory<uint8_t>(matmul_scratch_bytes(32), 64);
  for (const Kernels* kernels : tables()) {
    Exact<float> wide(kAll), scaled(kAll);
    const Rows f16 = {rows.data(), row_bytes(kF16, 8), kAll, 8};
    const Rows q8 = {blocks.data(), sizeof(BlockQ8_0), kAll, 32};
    const Output to_wide = {wide.data(), kAll, false}, to_scaled = {scaled.data(), kAll, false};
    kernels->matmul_f16(&f16, &x, 1, &to_wide, scratch.get());
    kernels->matmul_q8_0(&q8, &x, 1, &to_scaled, scratch.get());
    for (int h = 0; h < kAll; ++h) {
      const double expected = half_value(static_cast<uint16_t>(h));
      CHECK_CASE(wide[h] == expected || (std::isnan(expected) && std::isnan(wide[h])), "half %x",
                 h);
      CHECK_CASE(scaled[h] == expected || (std::isnan(expected) && std::isnan(scaled[h])),
                 "half %x", h);
    }
  }
}

void test_to_half() {
  Random random(3);
  std::vector<float> inputs = {0.0f, -0.0f,    kInfinity, -kInfinity,
                               kNaN, 65519.0f, 65520.0f,  1e-40f};
  for (int h = 0; h < 0x7c00; ++h) {  // every half and what lies between it and the next
    const float low = half_to_float(static_cast<uint16_t>(h));
    const float high = h == 0x7bff ? 65536.0f : half_to_float(static_cast<uint16_t>(h + 1));
    const float middle = (low + high) / 2;
    const float sign = random.chance(0.5) ? 1.0f : -1.0f;
    const float up = std::nextafter(middle, kInfinity), down = std::nextafter(middle, 0.0f);
    const uint16_t minus = sign < 0 ? 0x8000 : 0, odd = h & 1;
    CHECK_CASE(float_to_half(sign * middle) == (minus | (h + odd)), "half %x", h);
    CHECK_CASE(float_to_half(sign * up) == (minus | (h + 1)), "half %x", h);
    CHECK_CASE(float_to_half(sign * down) == (minus | h), "half %x", h);
    for (float value : {low, middle, up, down}) inputs.push_back(sign * value);
  }
  for (int i = 0; i < 200000; ++i)
    inputs.push_back(float_from_bits(static_cast<uint32_t>(random.bits())));
  for (const Kernels* kernels : tables()) {
    for (size_t at = 0, n; at < inputs.size(); at += n) {
      n = std::min<size_t>(random.between(1, 100), inputs.size() - at);
      Exact<float> x(n);
      Exact<uint16_t> y(n);
      std::memcpy(x.data(), inputs.data() + at, n * sizeof(float));
      kernels->to_half(x.data(), y.data(), static_cast<int>(n));
      for (size_t i = 0; i < n; ++i)
        CHECK_CASE(y[i] == float_to_half(x[i]), "%s %a", kernels->name, x[i]);
    }
  }
}

Exact<float> random_floats(Random& random, size_t n, float deviation) {
  Exact<float> x(n);
  for (size_t i = 0; i < n; ++i) x[i] = random.normal(deviation);
  return x;
}

void test_quantize() {
  Random random(4);
  const float deviations[] = {1.0f, 1e-30f, 1e-40f, 1e30f, 0.0f};
  for (int round = 0; round < 500; ++round) {
    const size_t n = 32 * random.between(1, 12);
    Exact<float> x = random_floats(random, n, deviations[round % 5]);
    const bool odd = random.chance(0.2);
    if (odd) x[random.between(0, n - 1)] = random.chance(0.5) ? kNaN : kInfinity;
    if (random.chance(0.3))  // ties: d is 1 and values lie between two codes
      for (size_t i = 0; i < n; ++i) x[i] = i % 32 ? random.between(-126, 126) + 0.5f : 127.0f;
    Exact<int8_t> truth(n);
    Exact<float> scales(n / 32);
    Exact<int32_t> sums(n / 32);
    kernels_ref()->quantize(x.data(), static_cast<int>(n), truth.data(), scales.data(),
                            sums.data());
    for (size_t i = 0; i < n; ++i) {
      const float d = scales[i / 32];
      if (std::isnormal(d) && !std::isnan(x[i]))
        CHECK_CASE(std::fabs(truth[i] * d - x[i]) <= 0.5001f * d, "%g as %d * %g", x[i], truth[i],
                   d);
    }
    for (const Kernels* kernels : tables()) {
      Exact<int8_t> codes(n);
      Exact<float> d(n / 32);
      Exact<int32_t> s(n / 32);
      kernels->quantize(x.data(), static_cast<int>(n), codes.data(), d.data(), s.data());
      CHECK_CASE(codes == truth && d == scales && s == sums, "%s %zu columns", kernels->name, n);
      for (size_t b = 0; b < n / 32; ++b) {
        int sum = 0;
        for (int j = 0; j < 32; ++j) sum += codes[b * 32 + j];
        CHECK(sum == s[b]);
      }
    }
  }
}

void test_rms_norm() {
  Random random(5);
  for (int n = 1; n < 300; n += n < 40 ? 1 : 7) {
    const Exact<float> x = random_floats(random, n, 1.0f), weight = random_floats(random, n, 1.0f);
    Exact<float> truth(n);
    kernels_ref()->rms_norm(x.data(), weight.data(), n, 1e-5f, truth.data());
    double squares = 0;
    for (int i = 0; i < n; ++i) squares += static_cast<double>(x[i]) * x[i];
    for (int i = 0; i < n; ++i) {
      const double expected = x[i] / std::sqrt(squares / n + 1e-5) * weight[i];
      CHECK_CASE(std::fabs(truth[i] - expected) <= 1e-5 * std::fabs(expected), "n %d", n);
    }
    for (const Kernels* kernels : tables()) {
      Exact<float> y(n);
      kernels->rms_norm(x.data(), weight.data(), n, 1e-5f, y.data());
      CHECK_CASE(y == truth, "%s n %d", kernels->name, n);
    }
  }
}

void test_silu_gate() {
  Random random(6);
  const float special[] = {0.0f,  -0.0f, 87.2f,  87.4f,      -87.2f, -87.4f,
                           88.5f, 1e30f, -1e30f, -kInfinity, kNaN,   kInfinity};
  for (int n = 1; n < 150; ++n) {
    Exact<float> gate = random_floats(random, n, n % 2 ? 3.0f : 60.0f);
    const Exact<float> up = random_floats(random, n, 1.0f);
    if (n % 3 == 0) gate[random.between(0, n - 1)] = special[random.between(0, 11)];
    Exact<float> truth = gate.copy();
    kernels_ref()->silu_gate(truth.data(), up.data(), n);
    for (int i = 0; i < n; ++i) {
      if (!(std::fabs(gate[i]) < 80)) continue;
      const double expected = gate[i] / (1 + std::exp(-static_cast<double>(gate[i]))) * up[i];
      CHECK_CASE(std::fabs(truth[i] - expected) <= 1e-6 * std::fabs(expected) + 1e-37, "%a",
                 gate[i]);
    }
    for (const Kernels* kernels : tables()) {
      Exact<float> y = gate.copy();
      kernels->silu_gate(y.data(), up.data(), n);
      CHECK_CASE(same_bits(y, truth), "%s n %d", kernels->name, n);
    }
  }
}

template <typename Kv>
void test_attention() {
  Random random(7);
  for (int round = 0; round < 150; ++round) {
    const int dim =
        static_cast<int>(round % 2 ? 8 * random.between(1, 16) : random.between(1, 131));
    const int n = static_cast<int>(random.between(1, 140));
    const float spread = random.chance(0.2) ? 30.0f : 1.0f;  // large scores: some weights vanish
    const Exact<float> q = random_floats(random, dim, spread);
    Exact<Kv> k(static_cast<size_t>(n) * dim), v(k.size());
    std::vector<double> k_value(k.size()), v_value(k.size());
    const auto fill = [&](Exact<Kv>& kv, std::vector<double>& value) {
      for (size_t i = 0; i < kv.size(); ++i) {
        if constexpr (sizeof(Kv) == 2) {
          kv[i] = float_to_half(random.normal());
          value[i] = half_value(kv[i]);
        } else {
          value[i] = kv[i] = random.normal();
        }
      }
    };
    fill(k, k_value);
    fill(v, v_value);
    const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
    const auto run = [&](const Kernels* kernels) {
      Exact<float> out(dim);
      const AttentionArgs args = {q.data(), k.data(), v.data(), out.data(), dim,
                                  n,        scale,    0,        0.0f,       n};
      (sizeof(Kv) == 2 ? kernels->attention_f16 : kernels->attention_f32)(&args);
      return out;
    };
    const Exact<float> truth = run(kernels_ref());
    std::vector<double> score(n);
    double peak = -INFINITY, total = 0;
    for (int i = 0; i < n; ++i) {
      for (int d = 0; d < dim; ++d) score[i] += q[d] * k_value[static_cast<size_t>(i) * dim + d];
      score[i] *= scale;
      peak = std::max(peak, score[i]);
    }
    for (double& s : score) total += s = std::exp(s - peak);
    for (int d = 0; d < dim; ++d) {
      double expected = 0;
      for (int i = 0; i < n; ++i) expected += score[i] * v_value[static_cast<size_t>(i) * dim + d];
      CHECK_CASE(std::fabs(truth[d] - expected / total) <= 1e-4, "dim %d positions %d", dim, n);
    }
    for (const Kernels* kernels : tables())
      CHECK_CASE(run(kernels) == truth, "%s dim %d positions %d", kernels->name, dim, n);
  }
}

}  // namespace
}  // namespace edge_rt

int main() {
  using namespace edge_rt;
  test::test_seed();
  if (kernels_avx2() == nullptr) std::fprintf(stderr, "no AVX2 here: only ref is tested\n");
  test::section("matmul", test_matmul);
  test::section("extreme codes", test_extreme_codes);
  test::section("every half", test_every_half);
  test::section("to_half", test_to_half);
  test::section("quantize", test_quantize);
  test::section("rms_norm", test_rms_norm);
  test::section("silu_gate", test_silu_gate);
  test::section("attention f16", test_attention<uint16_t>);
  test::section("attention f32", test_attention<float>);
  return test::finish("kernels_test");
}
