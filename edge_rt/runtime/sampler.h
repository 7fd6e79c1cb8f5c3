// Choosing the next token from logits, and scoring given ones.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

namespace edge_rt {

// Whether all of `logits` are numbers: a model whose weights are damaged gives NaN or infinity, and
// what is drawn from them would look like an answer.
bool all_finite(const float* logits, int n);

struct SamplerOptions {
  float temperature = 0.0f;        // 0: the most likely token
  int top_k = 0;                   // 0: off
  float top_p = 1.0f;              // 1: off
  float min_p = 0.0f;              // 0: off
  float repeat_penalty = 1.0f;     // 1: off
  float presence_penalty = 0.0f;   // 0: off
  float frequency_penalty = 0.0f;  // 0: off
};

struct Candidate {
  float logit;
  int32_t id;
};

// The order of the steps is llama.cpp's: bias, penalties, top-k, top-p, min-p, temperature, draw.
class Sampler {
 public:
  explicit Sampler(uint64_t seed) : state_(seed) {}

  // `logits` (n) are changed in place; `scratch` holds n candidates. `history`: the tokens that the
  // penalties count. Ties go to the lower id. The same seed and logits give the same tokens.
  int sample(float* logits, int n, const SamplerOptions& options,
             const std::vector<int32_t>& history,
             const std::vector<std::pair<int32_t, float>>& bias, Candidate* scratch);

 private:
  double uniform();  // in [0, 1)
  uint64_t state_;
};

// -ln softmax(logits)[target], in double.
double negative_log_likelihood(const float* logits, int n, int target);

}  // namespace edge_rt
