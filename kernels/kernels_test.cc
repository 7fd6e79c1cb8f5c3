// Scalar and SIMD kernels give the same bits, the scalar ones give the right values.
#include "kernels/kernels.h"

#include <cmath>
#include <limits>
#include <vector>

#include "kernels/half.h"
#include "tests/native/check.h"
#include "tests/native/matmul_problem.h"

namespace edge_rt {
namespace {

using test::Aligned;
using test::aligned_memory;
using test::Exact;
using test::Random;
using test::same_bits;
using test::tables;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

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
  const int16_t sums[2] = {1, 0};
  const Activations x = {values, codes, &scale, sums, 32};
  const Aligned<uint8_t> scratch = aligned_memory<uint8_t>(matmul_scratch_bytes(32), 64);
  for (const Kernels* kernels : tables()) {
    Exact<float> wide(kAll), scaled(kAll);
    const Rows f16 = {rows.data(), row_bytes(kF16, 8), kAll, 8};
    const Rows q8 = {blocks.data(), sizeof(BlockQ8_0), kAll, 32};
    const Output to_wide = {wide.data(), kAll, false}, to_scaled = {scaled.data(), kAll, false};
    kernels->matmul(kF16)(&f16, &x, 1, &to_wide, scratch.get());
    kernels->matmul(kQ8_0)(&q8, &x, 1, &to_scaled, scratch.get());
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
    Exact<int16_t> sums(n / 16);
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
      Exact<int16_t> s(n / 16);
      kernels->quantize(x.data(), static_cast<int>(n), codes.data(), d.data(), s.data());
      CHECK_CASE(codes == truth && d == scales && s == sums, "%s %zu columns", kernels->name, n);
      for (size_t b = 0; b < n / 16; ++b) {
        int sum = 0;
        for (int j = 0; j < 16; ++j) sum += codes[b * 16 + j];
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

}  // namespace
}  // namespace edge_rt

int main() {
  using namespace edge_rt;
  test::test_seed();
  test::say_tables();
  test::section("every half", test_every_half);
  test::section("to_half", test_to_half);
  test::section("quantize", test_quantize);
  test::section("rms_norm", test_rms_norm);
  test::section("silu_gate", test_silu_gate);
  return test::finish("kernels_test");
}
