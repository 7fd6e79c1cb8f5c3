// Gates, soft caps, rope and sums: every ISA gives the reference's bits, and the reference is right
// by sums in double.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "kernels/half.h"
#include "kernels/kernels.h"
#include "tests/native/check.h"
#include "tests/native/kernel_tables.h"

namespace edge_rt {
namespace {

using test::Random;
using test::tables;

const float kInfinity = std::numeric_limits<float>::infinity();
const float kNaN = std::numeric_limits<float>::quiet_NaN();

// Exactly as long as it says, so that an address sanitizer sees a kernel that goes further.
template <typename T>
using Exact = std::vector<T>;

Exact<float> random_floats(Random& random, int n, float deviation) {
  Exact<float> values(n);
  for (float& value : values) value = random.normal(deviation);
  values.shrink_to_fit();
  return values;
}

bool same_bits(const Exact<float>& a, const Exact<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// Which NaN comes out of two, or out of none, is not specified.
Exact<float> one_nan(Exact<float> x) {
  for (float& value : x) value = std::isnan(value) ? kNaN : value;
  return x;
}

void sprinkle(Random& random, Exact<float>& x) {
  const float special[] = {0.0f,   -0.0f,  0.25f, -0.25f,     1e-30f, 1e30f,
                           -1e30f, 1e-40f, kNaN,  -kInfinity, 88.5f,  kInfinity};
  for (float& value : x)
    if (random.chance(0.05)) value = special[random.between(0, 11)];
}

double gelu(double x) {
  const double u = std::sqrt(2 / std::acos(-1.0)) * (x + 0.044715 * x * x * x);
  return x / (1 + std::exp(-2 * u));
}

void test_gelu_gate() {
  Random random(1);
  for (int n = 1; n < 200; ++n) {
    Exact<float> gate = random_floats(random, n, n % 2 ? 2.0f : 8.0f);
    const Exact<float> up = random_floats(random, n, 1.0f);
    if (n % 3 == 0) sprinkle(random, gate);
    Exact<float> truth = gate;
    kernels_ref()->gelu_gate(truth.data(), up.data(), n);
    for (int i = 0; i < n; ++i) {
      if (!(std::fabs(gate[i]) < 4)) continue;
      const double expected = gelu(gate[i]) * up[i];
      CHECK_CASE(std::fabs(truth[i] - expected) <= 2e-6 * std::fabs(expected) + 1e-37, "%a: %g %g",
                 gate[i], truth[i], expected);
    }
    for (int i = 0; i < n; ++i) {  // far out it is 0 or the identity
      if (gate[i] > 8 && gate[i] < 1e31f) CHECK(truth[i] == gate[i] * up[i]);
      if (gate[i] < -12 && gate[i] > -1e31f) CHECK(std::fabs(truth[i]) <= 1e-6f);
    }
    for (const Kernels* kernels : tables()) {
      Exact<float> y = gate;
      kernels->gelu_gate(y.data(), up.data(), n);
      CHECK_CASE(same_bits(y, truth), "%s n %d", kernels->name, n);
    }
  }
}

void test_softcap() {
  Random random(2);
  for (int n = 1; n < 200; ++n) {
    const float cap = std::exp(random.normal(1.5f) + 2);
    Exact<float> x = random_floats(random, n, std::exp(random.normal(2.0f)) * cap);
    if (n % 3 == 0) sprinkle(random, x);
    Exact<float> truth = x;
    kernels_ref()->softcap(truth.data(), n, cap);
    for (int i = 0; i < n; ++i) {
      if (std::isnan(x[i])) {
        CHECK(std::isnan(truth[i]));
        continue;
      }
      const double expected = cap * std::tanh(static_cast<double>(x[i]) / cap);
      CHECK_CASE(std::fabs(truth[i] - expected) <= 1e-6 * std::fabs(expected) + 1e-37,
                 "%a capped at %g: %g %g", x[i], cap, truth[i], expected);
      CHECK(std::fabs(truth[i]) <= cap && std::signbit(truth[i]) == std::signbit(x[i]));
    }
    for (const Kernels* kernels : tables()) {
      Exact<float> y = x;
      kernels->softcap(y.data(), n, cap);
      CHECK_CASE(same_bits(y, truth), "%s n %d", kernels->name, n);
    }
  }
}

void test_rope() {
  Random random(4);
  for (int round = 0; round < 300; ++round) {
    const int dim = static_cast<int>(random.between(1, 140)), n_heads = 1 + round % 3;
    const int n_pairs = static_cast<int>(random.between(0, dim / 2));
    Exact<float> heads = random_floats(random, n_heads * dim, 2.0f);
    if (round % 3 == 0) sprinkle(random, heads);
    Exact<float> table(2 * n_pairs);
    for (int i = 0; i < n_pairs; ++i) {
      const double angle = random.normal(100.0f);
      table[i] = static_cast<float>(std::cos(angle));
      table[n_pairs + i] = static_cast<float>(std::sin(angle));
    }
    for (const bool halves : {true, false}) {
      Exact<float> truth = heads;
      kernels_ref()->rope(truth.data(), n_heads, dim, table.data(), n_pairs, halves);
      for (int i = 0; i < n_heads * dim; ++i) {
        const int d = i % dim;
        if (d >= 2 * n_pairs) {
          CHECK(std::memcmp(&truth[i], &heads[i], sizeof(float)) == 0);
          continue;
        }
        const bool second = halves ? d >= n_pairs : d % 2 == 1;
        const int pair = halves ? d % n_pairs : d / 2;
        const int mate = halves ? (second ? i - n_pairs : i + n_pairs) : i - d + (d ^ 1);
        const double c = table[pair], s = table[n_pairs + pair];
        const double expected =
            second ? heads[mate] * s + heads[i] * c : heads[i] * c - heads[mate] * s;
        if (std::isfinite(expected) && std::fabs(expected) < 1e30)
          CHECK_CASE(std::fabs(truth[i] - expected) <=
                         1e-6 * (std::fabs(heads[i]) + std::fabs(heads[mate])) + 1e-37,
                     "dim %d pairs %d column %d", dim, n_pairs, d);
      }
      for (const Kernels* kernels : tables()) {
        Exact<float> y = heads;
        kernels->rope(y.data(), n_heads, dim, table.data(), n_pairs, halves);
        CHECK_CASE(same_bits(one_nan(y), one_nan(truth)), "%s dim %d pairs %d", kernels->name, dim,
                   n_pairs);
      }
    }
  }
}

void test_add() {
  Random random(5);
  for (int n = 1; n < 100; ++n) {
    const Exact<float> start = random_floats(random, n, 1.0f), x = random_floats(random, n, 1.0f);
    const float factor = n % 2 ? 1.0f : random.normal();
    for (const Kernels* kernels : tables()) {
      Exact<float> y = start;
      kernels->add(y.data(), x.data(), factor, n);
      for (int i = 0; i < n; ++i) {
        const float product = factor * x[i];
        CHECK_CASE(y[i] == start[i] + product, "%s n %d", kernels->name, n);
      }
    }
  }
}

}  // namespace
}  // namespace edge_rt

int main() {
  using namespace edge_rt;
  test::test_seed();
  test::say_tables();
  test::section("gelu_gate", test_gelu_gate);
  test::section("softcap", test_softcap);
  test::section("rope", test_rope);
  test::section("add", test_add);
  return test::finish("ops_test");
}
