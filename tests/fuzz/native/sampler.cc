// Sampling from any logits with any options, history and bias: a token of the vocabulary comes
// back, the same for the same seed, and a number is never passed over for a NaN.
#include "edge_rt/runtime/sampler.h"

#include <cmath>

#include "tests/fuzz/native/input.h"
#include "tests/native/check.h"

namespace edge_rt {
namespace {

using fuzz::Input;
using test::Exact;

float some_float(Input& in) {
  const float odd[] = {0.0f, 1.0f, -1.0f, INFINITY, -INFINITY, NAN, 1e-45f, 3e38f, 1e-30f, 0.95f};
  return in.flag() ? odd[in.between(0, std::size(odd) - 1)] : in.take<float>();
}

void sample(Input& in) {
  const int n = static_cast<int>(in.between(1, in.flag() ? 40 : 700));
  SamplerOptions options;
  options.temperature = some_float(in);
  options.top_k = in.flag() ? in.take<int>() : static_cast<int>(in.between(0, 50));
  options.top_p = some_float(in);
  options.min_p = some_float(in);
  options.repeat_penalty = some_float(in);
  options.presence_penalty = some_float(in);
  options.frequency_penalty = some_float(in);
  std::vector<int32_t> history(in.between(0, 20));
  for (int32_t& id : history) id = in.flag() ? in.take<int32_t>() : in.take<uint8_t>();
  std::vector<std::pair<int32_t, float>> bias(in.between(0, 5));
  for (auto& [id, value] : bias) id = in.take<int16_t>(), value = some_float(in);
  const uint64_t seed = in.take<uint64_t>();
  Exact<float> logits(n);
  if (in.flag()) {
    in.fill(logits.data(), n * sizeof(float));
  } else {  // some odd ones among tame ones, with ties
    for (int i = 0; i < n; ++i) {
      const uint8_t kind = in.take<uint8_t>();
      logits[i] = kind < 30 ? some_float(in) : static_cast<float>(kind) / 8 - 16;
    }
  }
  int ids[2];
  for (int& id : ids) {
    Exact<float> copy = logits.copy();
    Exact<Candidate> scratch(n);
    Sampler sampler(seed);
    id = sampler.sample(copy.data(), n, options, history, bias, scratch.data());
    REQUIRE(id >= 0 && id < n);
    bool any_number = false;
    for (int i = 0; i < n; ++i) any_number = any_number || !std::isnan(copy[i]);
    REQUIRE(!any_number || !std::isnan(copy[id]));
    id = sampler.sample(copy.data(), n, options, history, bias, scratch.data());
    REQUIRE(id >= 0 && id < n);
  }
  REQUIRE(ids[0] == ids[1]);
  bool finite = true;
  for (int i = 0; i < n; ++i) finite = finite && std::isfinite(logits[i]);
  const double nll =
      negative_log_likelihood(logits.data(), n, static_cast<int>(in.between(0, n - 1)));
  REQUIRE(!finite || (std::isfinite(nll) && nll >= -1e-9));
}

}  // namespace
}  // namespace edge_rt

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  edge_rt::fuzz::Input in(data, size);
  edge_rt::sample(in);
  return 0;
}
