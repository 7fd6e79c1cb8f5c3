// What the sampler promises, case by case. Part of runtime_test.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>
#include <vector>

#include "edge_rt/runtime/sampler.h"
#include "tests/native/check.h"

namespace edge_rt::test {

using Logits = std::vector<float>;
using Bias = std::vector<std::pair<int32_t, float>>;

inline int sample(Sampler& sampler, Logits logits, const SamplerOptions& options,
                  const std::vector<int32_t>& history = {}, const Bias& bias = {}) {
  Exact<Candidate> scratch(logits.size());
  return sampler.sample(logits.data(), static_cast<int>(logits.size()), options, history, bias,
                        scratch.data());
}

// The ids that 400 draws give.
inline std::set<int> drawn(const Logits& logits, const SamplerOptions& options) {
  Sampler sampler(7);
  std::set<int> ids;
  for (int i = 0; i < 400; ++i) ids.insert(sample(sampler, logits, options));
  return ids;
}

inline SamplerOptions warm(float temperature = 1.0f) {
  SamplerOptions options;
  options.temperature = temperature;
  return options;
}

inline void test_sampler_cuts() {
  Sampler sampler(1);
  CHECK(sample(sampler, {1, 3, 2, 3, 3}, {}) == 1);  // greedy: a tie goes to the lowest id
  const Logits logits = {1.0f, 2.0f, 2.5f, 2.5f, -1.0f, 0.5f};
  SamplerOptions options = warm();
  options.top_k = 1;
  CHECK(drawn(logits, options) == std::set<int>{2});
  options.top_k = 3;
  CHECK((drawn(logits, options) == std::set<int>{1, 2, 3}));
  options.top_k = 1000;  // more than there are
  CHECK(drawn(logits, options).size() == 6);
  for (float top_p : {0.0f, 1e-9f, 0.1f}) {
    options = warm();
    options.top_p = top_p;
    CHECK_CASE(drawn(logits, options) == std::set<int>{2}, "top_p %g", top_p);
  }
  options.top_p = 0.6f;  // ids 2 and 3 hold 0.34 each
  CHECK((drawn(logits, options) == std::set<int>{2, 3}));
  options.top_p = 0.7f;
  CHECK((drawn(logits, options) == std::set<int>{1, 2, 3}));
  for (float temperature : {1.0f, 5.0f}) {  // min_p looks at the untempered probabilities
    options = warm(temperature);
    options.min_p = 0.5f;  // e^-0.5 = 0.61 stays, e^-1.5 = 0.22 goes
    CHECK((drawn(logits, options) == std::set<int>{1, 2, 3}));
    options.min_p = 1.0f;
    CHECK((drawn(logits, options) == std::set<int>{2, 3}));
    options.top_k = 3;  // not the shortcut that cuts first
    CHECK((drawn(logits, options) == std::set<int>{2, 3}));
  }
  CHECK(drawn(logits, warm(1e-6f)).size() == 2);  // both of the tie, nothing else
  // A large vocabulary: top_p sorts it piece by piece.
  Random random(50);
  Logits many(5000);
  for (float& value : many) value = random.normal(0.1f);
  options = warm();
  options.top_p = 0.5f;
  std::vector<int> order(many.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int>(i);
  std::sort(order.begin(), order.end(), [&](int a, int b) { return many[a] > many[b]; });
  double total = 0, mass = 0;
  for (float value : many) total += std::exp(value);
  std::set<int> kept;
  for (int id : order) {
    if (mass >= 0.5 * total) break;
    kept.insert(id);
    mass += std::exp(many[id]);
  }
  for (int id : drawn(many, options)) CHECK(kept.count(id) == 1);
}

inline void test_sampler_penalties() {
  SamplerOptions options;
  options.repeat_penalty = 1.5f;
  options.frequency_penalty = 0.25f;
  options.presence_penalty = 0.5f;
  const std::vector<int32_t> history = {3, 1, 3, 99, -1, 3};  // foreign ids are ignored
  Logits logits = {0.0f, 3.0f, -2.0f, -2.0f, 1.0f};
  Exact<Candidate> scratch(logits.size());
  Sampler sampler(1);
  const int id =
      sampler.sample(logits.data(), 5, options, history, {{4, 1.0f}, {77, 9.0f}}, scratch.data());
  const Logits expected = {0.0f, 3.0f / 1.5f - 0.25f - 0.5f, -2.0f, -2.0f * 1.5f - 3 * 0.25f - 0.5f,
                           2.0f};
  CHECK(id == 4);
  for (int i = 0; i < 5; ++i) CHECK_CASE(std::fabs(logits[i] - expected[i]) < 1e-6f, "id %d", i);
  CHECK(sample(sampler, {1, 2, 3}, {}, {}, {{0, 5.0f}}) == 0);
  const float banned = -std::numeric_limits<float>::infinity();
  for (int i = 0; i < 50; ++i)
    CHECK(sample(sampler, {9, 1, 9}, warm(), {}, {{0, banned}, {2, banned}}) == 1);
}

inline void test_sampler_distribution() {
  constexpr int kDraws = 20000, kIds = 12;
  Random random(51);
  for (float temperature : {0.7f, 1.0f, 2.0f}) {
    Logits logits(kIds);
    for (float& value : logits) value = static_cast<float>(random.between(-100, 100)) / 50;
    double total = 0;
    for (float value : logits) total += std::exp(value / temperature);
    Sampler sampler(12345), again(12345), other(54321);
    std::vector<int> count(kIds), ids;
    int differ = 0;
    for (int i = 0; i < kDraws; ++i) {
      const int id = sample(sampler, logits, warm(temperature));
      ++count[id];
      CHECK(sample(again, logits, warm(temperature)) == id);
      differ += sample(other, logits, warm(temperature)) != id;
    }
    CHECK(differ > kDraws / 10);
    double chi_square = 0;
    for (int i = 0; i < kIds; ++i) {
      const double expected = kDraws * std::exp(logits[i] / temperature) / total;
      chi_square += (count[i] - expected) * (count[i] - expected) / expected;
    }
    CHECK_CASE(chi_square < 50, "chi-square %g at temperature %g", chi_square,
               temperature);  // 1e-6
  }
}

// A hostile model file can give any logits: an id comes back and nothing is read out of bounds.
inline void test_sampler_odd_logits() {
  const float inf = std::numeric_limits<float>::infinity(), nan = std::nanf("");
  Random random(52);
  for (int round = 0; round < 2000; ++round) {
    Logits logits(random.between(1, 80));
    for (float& value : logits) {
      const int kind = static_cast<int>(random.between(0, 5));
      value = kind == 0 ? nan : kind == 1 ? inf : kind == 2 ? -inf : random.normal(300.0f);
      if (round % 4 == 0) value = round % 8 ? nan : -inf;
    }
    SamplerOptions options = warm(round % 3 ? 1.0f : 100.0f);
    if (random.chance(0.4)) options.top_k = static_cast<int>(random.between(1, 90));
    if (random.chance(0.4)) options.top_p = 0.9f;
    if (random.chance(0.4)) options.min_p = random.chance(0.5) ? 0.05f : 2.0f;
    Sampler sampler(round);
    const int n = static_cast<int>(logits.size()), id = sample(sampler, logits, options);
    CHECK(id >= 0 && id < n);
    const int greedy = sample(sampler, logits, {});
    bool any_number = false;
    for (float value : logits) any_number = any_number || !std::isnan(value);
    if (any_number) CHECK(!std::isnan(logits[greedy]) && !std::isnan(logits[id]));
  }
  // A hot draw reaches what lies far below the peak.
  CHECK((drawn({1000.0f, 0.0f}, warm(10000.0f)) == std::set<int>{0, 1}));
}

inline void test_negative_log_likelihood() {
  Random random(53);
  for (int round = 0; round < 200; ++round) {
    Exact<float> logits(random.between(1, 300));
    for (size_t i = 0; i < logits.size(); ++i) logits[i] = random.normal(round % 2 ? 5.0f : 200.0f);
    const int n = static_cast<int>(logits.size());
    const int target = static_cast<int>(random.between(0, n - 1));
    long double total = 0;
    for (int i = 0; i < n; ++i) total += std::exp(static_cast<long double>(logits[i]));
    const double expected = static_cast<double>(std::log(total) - logits[target]);
    const double nll = negative_log_likelihood(logits.data(), n, target);
    CHECK_CASE(std::fabs(nll - expected) <= 1e-9 * (1 + std::fabs(expected)), "%g %g", nll,
               expected);
  }
}

inline void test_all_finite() {
  const float max = std::numeric_limits<float>::max(), inf = std::numeric_limits<float>::infinity();
  for (int n : {1, 3, 7, 64, 257}) {
    std::vector<float> logits(n, -max);
    logits[n / 2] = std::numeric_limits<float>::denorm_min();
    CHECK(all_finite(logits.data(), n));
    for (int at = 0; at < n; ++at)
      for (float wrong : {inf, -inf, std::nanf(""), -std::nanf("1")}) {
        std::vector<float> broken = logits;
        broken[at] = wrong;
        CHECK(!all_finite(broken.data(), n));
      }
  }
}

inline void test_sampler() {
  test_all_finite();
  test_sampler_cuts();
  test_sampler_penalties();
  test_sampler_distribution();
  test_sampler_odd_logits();
  test_negative_log_likelihood();
}

}  // namespace edge_rt::test
