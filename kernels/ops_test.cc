// Gates, soft caps and windowed attention: every ISA gives the reference's bits, and the reference
// is right by sums in double.
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

template <typename Kv>
void test_window() {
  Random random(3);
  for (int round = 0; round < 200; ++round) {
    const int dim =
        static_cast<int>(round % 2 ? 8 * random.between(1, 16) : random.between(1, 131));
    const int n = static_cast<int>(random.between(1, 170));
    const int first = random.chance(0.2) ? 0 : static_cast<int>(random.between(0, n - 1));
    // Either all positions have a row of their own, or a ring has room for the window's tiles.
    const int tiles = (n + kAttentionTile - 1) / kAttentionTile - first / kAttentionTile;
    const int ring =
        random.chance(0.3) ? n : kAttentionTile * (tiles + static_cast<int>(random.between(0, 2)));
    const float cap = random.chance(0.5) ? 0.0f : std::exp(random.normal(1.0f) + 1);
    const Exact<float> q = random_floats(random, dim, random.chance(0.2) ? 30.0f : 1.0f);
    // What no position of the window is stored in must not count, whatever it is.
    Exact<Kv> k(static_cast<size_t>(ring) * dim, sizeof(Kv) == 2 ? Kv(0x7e00) : Kv(kNaN)), v = k;
    std::vector<double> k_value(static_cast<size_t>(n) * dim), v_value(k_value.size());
    const auto fill = [&](Exact<Kv>& kv, std::vector<double>& value) {
      for (int p = first; p < n; ++p) {
        for (int d = 0; d < dim; ++d) {
          Kv& stored = kv[static_cast<size_t>(p % ring) * dim + d];
          const float x = random.normal();
          if constexpr (sizeof(Kv) == 2) {
            stored = float_to_half(x);
            value[static_cast<size_t>(p) * dim + d] = half_to_float(stored);
          } else {
            value[static_cast<size_t>(p) * dim + d] = stored = x;
          }
        }
      }
    };
    fill(k, k_value);
    fill(v, v_value);
    const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
    const auto run = [&](const Kernels* kernels) {
      Exact<float> out(dim);
      const AttentionArgs args = {q.data(), k.data(), v.data(), out.data(), dim,
                                  n,        scale,    first,    cap,        ring};
      (sizeof(Kv) == 2 ? kernels->attention_f16 : kernels->attention_f32)(&args);
      return out;
    };
    const Exact<float> truth = run(kernels_ref());
    std::vector<double> score(n);
    double peak = -INFINITY, total = 0;
    for (int i = first; i < n; ++i) {
      for (int d = 0; d < dim; ++d) score[i] += q[d] * k_value[static_cast<size_t>(i) * dim + d];
      score[i] *= scale;
      if (cap != 0) score[i] = cap * std::tanh(score[i] / cap);
      peak = std::max(peak, score[i]);
    }
    for (int i = first; i < n; ++i) total += score[i] = std::exp(score[i] - peak);
    for (int d = 0; d < dim; ++d) {
      double expected = 0;
      for (int i = first; i < n; ++i)
        expected += score[i] * v_value[static_cast<size_t>(i) * dim + d];
      CHECK_CASE(std::fabs(truth[d] - expected / total) <= 1e-4, "dim %d positions %d to %d", dim,
                 first, n);
    }
    for (const Kernels* kernels : tables())
      CHECK_CASE(same_bits(run(kernels), truth), "%s dim %d positions %d to %d", kernels->name, dim,
                 first, n);
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
  test::section("window f16", test_window<uint16_t>);
  test::section("window f32", test_window<float>);
  return test::finish("ops_test");
}
