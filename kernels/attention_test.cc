// Attention over every kind of KV cache: windows, rings, soft caps, spans, queries one by one and
// together. Every ISA gives the reference's bits, however the work is cut, and the reference is
// right by sums in double.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/half.h"
#include "kernels/kernels.h"
#include "kernels/kv_cache.h"
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

const float kInfinity = std::numeric_limits<float>::infinity();
const float kNaN = std::numeric_limits<float>::quiet_NaN();

// What a row of the cache stands for.
float stored(int format, bool is_key, int dim, const uint8_t* head, int row, int column) {
  const size_t i = static_cast<size_t>(row) * dim + column;
  if (format == kKvF16) return half_to_float(load_u16(head + 2 * i));
  if (format == kKvF32) return load_f32(head + 4 * i);
  const uint8_t* tile = kv_tile(format, head, dim, row);
  row %= kAttentionTile;
  const size_t at = (is_key ? key_code : value_code)(dim, row, column);
  return half_to_float(load_u16(tile + kv_scale(dim, row, column / 32))) *
         static_cast<int8_t>(tile[at]);
}

struct Problem {
  int format, dim, n_heads, n_tokens, n, window, ring;
  float cap, scale;
  Exact<float> q{0};
  Exact<uint8_t> k{0}, v{0};

  int first(int t) const {
    const int end = n - n_tokens + t + 1;
    return window > 0 ? std::max(0, end - window) : 0;
  }
};

Problem make(Random& random, int format) {
  Problem p;
  p.format = format;
  p.dim = static_cast<int>(random.chance(0.5) ? 8 * random.between(1, 16) : random.between(1, 131));
  p.n_heads = static_cast<int>(random.between(1, random.chance(0.2) ? kAttentionQueries : 5));
  const int most = kAttentionQueries / p.n_heads;
  p.n_tokens = random.chance(0.3) ? 1 : static_cast<int>(random.between(1, most));
  p.n = static_cast<int>(random.between(p.n_tokens, random.chance(0.3) ? 700 : 150));
  p.window = random.chance(0.5) ? 0 : static_cast<int>(random.between(1, p.n));
  // Either all positions have a row of their own, or a ring has room for what the tokens see.
  const int tiles = (p.n + kAttentionTile - 1) / kAttentionTile - p.first(0) / kAttentionTile;
  p.ring =
      static_cast<int>(random.chance(0.3) ? p.n : kAttentionTile * (tiles + random.between(0, 2)));
  p.cap = random.chance(0.5) ? 0.0f : std::exp(random.normal(1.0f) + 1);
  p.scale = 1.0f / std::sqrt(static_cast<float>(p.dim));
  p.q = Exact<float>(static_cast<size_t>(p.n_tokens) * p.n_heads * p.dim);
  const float spread = random.chance(0.2) ? 30.0f : 1.0f;  // large scores: some weights vanish
  for (size_t i = 0; i < p.q.size(); ++i) p.q[i] = random.normal(spread);
  // What no position of a window is stored in must not count: NaNs everywhere.
  p.k = Exact<uint8_t>(kv_head_bytes(format, p.dim, p.ring));
  p.v = Exact<uint8_t>(p.k.size());
  for (size_t i = 0; i < p.k.size(); ++i) p.k[i] = p.v[i] = 0xff;
  Exact<float> x(p.dim);
  for (int position = p.first(0); position < p.n; ++position) {
    for (const bool is_key : {true, false}) {
      for (int d = 0; d < p.dim; ++d) x[d] = random.normal();
      store_kv(kernels_ref(), format, is_key, x.data(), p.dim, (is_key ? p.k : p.v).data(),
               position % p.ring);
    }
  }
  return p;
}

// (n_tokens, n_heads, dim): tokens in calls of `together`, or the spans one by one.
Exact<float> run(const Kernels* kernels, const Problem& p, int together, bool by_spans) {
  Exact<float> out(p.q.size());
  const Aligned<uint8_t> scratch = aligned_memory<uint8_t>(attention_scratch_bytes(p.dim), 64);
  const Exact<float> scales = [&] {
    Exact<float> all(p.n_tokens);
    for (int t = 0; t < p.n_tokens; ++t) all[t] = p.scale;
    return all;
  }();
  const size_t stride = static_cast<size_t>(p.n_heads) * p.dim;
  for (int t = 0; t < p.n_tokens; t += together) {
    AttentionArgs args = {p.format,
                          p.q.data() + t * stride,
                          out.data() + t * stride,
                          stride,
                          p.k.data(),
                          p.v.data(),
                          std::min(together, p.n_tokens - t),
                          p.n_heads,
                          p.dim,
                          p.ring,
                          p.n - p.n_tokens + t,
                          p.window,
                          scales.data() + t,
                          p.cap,
                          -1,
                          scratch.get()};
    if (!by_spans) {
      kernels->attention(&args);
      continue;
    }
    const int first = p.first(t) / kAttentionSpan, end = n_spans(args.position + 1);
    const size_t row = static_cast<size_t>(p.n_heads) * (p.dim + 2);
    Exact<float> spans((end - first) * row);
    for (args.span = first; args.span < end; ++args.span) {
      args.out = spans.data() + (args.span - first) * row;
      kernels->attention(&args);
    }
    kernels->merge_spans(spans.data(), end - first, p.n_heads, p.dim, out.data() + t * stride);
  }
  return out;
}

void check_value(const Problem& p, const Exact<float>& found, int t, int h) {
  const int end = p.n - p.n_tokens + t + 1;
  const float* q = p.q.data() + (static_cast<size_t>(t) * p.n_heads + h) * p.dim;
  std::vector<float> heads(padded_columns(p.dim)), scales(heads.size() / 32);
  std::vector<int8_t> codes(heads.size());
  std::vector<int16_t> sums(heads.size() / 16);
  std::copy_n(q, p.dim, heads.begin());
  if (p.format == kKvQ8_0) {  // as the kernels round it
    kernels_ref()->quantize(heads.data(), static_cast<int>(heads.size()), codes.data(),
                            scales.data(), sums.data());
    for (size_t d = 0; d < heads.size(); ++d) heads[d] = scales[d / 32] * codes[d];
  }
  std::vector<double> score(end);
  double peak = -INFINITY, total = 0;
  for (int i = p.first(t); i < end; ++i) {
    for (int d = 0; d < p.dim; ++d)
      score[i] += heads[d] * double{stored(p.format, true, p.dim, p.k.data(), i % p.ring, d)};
    score[i] *= p.scale;
    if (p.cap != 0) score[i] = p.cap * std::tanh(score[i] / p.cap);
    peak = std::max(peak, score[i]);
  }
  for (int i = p.first(t); i < end; ++i) total += score[i] = std::exp(score[i] - peak);
  for (int d = 0; d < p.dim; ++d) {
    double expected = 0;
    for (int i = p.first(t); i < end; ++i)
      expected += score[i] * stored(p.format, false, p.dim, p.v.data(), i % p.ring, d);
    const float y = found[(static_cast<size_t>(t) * p.n_heads + h) * p.dim + d];
    CHECK_CASE(std::fabs(y - expected / total) <= 1e-4, "dim %d positions %d to %d: %g %g", p.dim,
               p.first(t), end, y, expected / total);
  }
}

template <int kFormat>
void test_attention() {
  Random random(20 + kFormat);
  for (int round = 0; round < 60; ++round) {
    const Problem p = make(random, kFormat);
    const Exact<float> truth = run(kernels_ref(), p, 1, false);
    for (int t = 0; t < p.n_tokens; ++t)
      check_value(p, truth, t, static_cast<int>(round % p.n_heads));
    for (const Kernels* kernels : tables()) {
      const auto same = [&](int together, bool by_spans) {
        CHECK_CASE(same_bits(run(kernels, p, together, by_spans), truth),
                   "%s dim %d heads %d tokens %d by %d positions %d window %d ring %d%s",
                   kernels->name, p.dim, p.n_heads, p.n_tokens, together, p.n, p.window, p.ring,
                   by_spans ? " by spans" : "");
      };
      same(p.n_tokens, false);
      same(static_cast<int>(random.between(1, p.n_tokens)), false);
      same(1, true);
    }
  }
}

// Temperatures give every token a scale of its own.
void test_scales() {
  Random random(30);
  for (int round = 0; round < 30; ++round) {
    Problem p = make(random, static_cast<int>(random.between(0, 2)));
    const size_t stride = static_cast<size_t>(p.n_heads) * p.dim;
    Exact<float> scales(p.n_tokens);
    for (int t = 0; t < p.n_tokens; ++t) scales[t] = p.scale * (random.chance(0.5) ? 1.5f : 1);
    const Aligned<uint8_t> scratch = aligned_memory<uint8_t>(attention_scratch_bytes(p.dim), 64);
    for (const Kernels* kernels : tables()) {
      Exact<float> out(p.q.size()), one(stride);
      AttentionArgs args = {p.format,         p.q.data(), out.data(),    stride, p.k.data(),
                            p.v.data(),       p.n_tokens, p.n_heads,     p.dim,  p.ring,
                            p.n - p.n_tokens, p.window,   scales.data(), p.cap,  -1,
                            scratch.get()};
      kernels->attention(&args);
      for (int t = 0; t < p.n_tokens; ++t) {
        args.q = p.q.data() + t * stride, args.out = one.data(), args.n_tokens = 1;
        args.position = p.n - p.n_tokens + t, args.scales = scales.data() + t;
        kernels_ref()->attention(&args);
        CHECK(std::memcmp(one.data(), out.data() + t * stride, stride * sizeof(float)) == 0);
      }
    }
  }
}

void test_quantize_kv() {
  Random random(31);
  for (int n = 1; n < 300; ++n) {
    Exact<float> x(n);
    const float size = std::exp(random.normal(4.0f));
    for (int i = 0; i < n; ++i) x[i] = random.normal(size);
    if (n % 5 == 0) x[random.between(0, n - 1)] = random.chance(0.5) ? kNaN : kInfinity;
    if (n % 7 == 0) x[random.between(0, n - 1)] = 1e9f;  // no half is a 127th of it
    if (n % 11 == 0)
      for (int i = 0; i < n; ++i) x[i] *= 1e-9f;  // scales below the smallest half, or subnormal
    if (n % 13 == 0)
      for (int i = 0; i < n; ++i) x[i] = 0.0f;
    const size_t padded = padded_columns(n);
    Exact<int8_t> truth(padded);
    Exact<uint16_t> scales(padded / 32);
    kernels_ref()->quantize_kv(x.data(), n, truth.data(), scales.data());
    for (size_t i = 0; i < padded; ++i) {
      if (i >= static_cast<size_t>(n)) {
        CHECK(truth[i] == 0);
        continue;
      }
      const size_t last = std::min<size_t>(n, i / 32 * 32 + 32);
      float peak = 0, finite = 0;
      for (size_t j = i / 32 * 32; j < last; ++j) {
        peak = std::max(peak, std::fabs(x[j]));
        finite += x[j] * 0;
      }
      const float d = half_to_float(scales[i / 32]);
      if (finite != 0) {
        CHECK(std::isnan(d) && truth[i] == 0);
      } else if (peak / 127 > 65520) {
        CHECK(std::isinf(d) && truth[i] == 0);
      } else {
        // Half a step, or where the scale itself is rounded far down what the largest code lacks.
        const float lacking = std::max(0.0f, peak - 127 * d);
        CHECK_CASE(std::fabs(d * truth[i] - x[i]) <= d * 0.5001f + lacking, "%a: %d times %a", x[i],
                   truth[i], d);
        CHECK(d == half_to_float(float_to_half(peak / 127)));
      }
    }
    for (const Kernels* kernels : tables()) {
      Exact<int8_t> codes(padded);
      Exact<uint16_t> found(padded / 32);
      kernels->quantize_kv(x.data(), n, codes.data(), found.data());
      CHECK_CASE(std::memcmp(codes.data(), truth.data(), padded) == 0 &&
                     std::memcmp(found.data(), scales.data(), found.size() * 2) == 0,
                 "%s n %d", kernels->name, n);
    }
  }
}

// A number that is none reaches the result: nobody goes on with half a cache.
void test_no_numbers() {
  Random random(32);
  for (int round = 0; round < 60; ++round) {
    Problem p = make(random, static_cast<int>(random.between(0, 2)));
    Exact<float> x(p.dim);
    for (int d = 0; d < p.dim; ++d) x[d] = random.normal();
    x[random.between(0, p.dim - 1)] = kNaN;
    const bool is_key = random.chance(0.5);
    store_kv(kernels_ref(), p.format, is_key, x.data(), p.dim, (is_key ? p.k : p.v).data(),
             (p.n - 1) % p.ring);
    for (const Kernels* kernels : tables()) {
      const Exact<float> out = run(kernels, p, p.n_tokens, false);
      bool all = true, any = false;
      for (size_t i = out.size() - p.dim; i < out.size(); ++i)
        all = all && std::isnan(out[i]), any = any || std::isnan(out[i]);
      CHECK(is_key ? all : any);
    }
  }
}

void test_formats() {
  CHECK(kv_format_named("f16") == kKvF16 && kv_format_named("f32") == kKvF32);
  CHECK(kv_format_named("q8_0") == kKvQ8_0 && kv_format_named("q4_0") == -1);
  CHECK(kv_head_bytes(kKvQ8_0, 64, 2048) * 64 == kv_head_bytes(kKvF16, 64, 2048) * 34);
  CHECK(kv_head_bytes(kKvQ8_0, 80, 33) == 2 * 34 * 96);
}

}  // namespace
}  // namespace edge_rt

int main() {
  using namespace edge_rt;
  test::test_seed();
  test::section("formats", test_formats);
  test::section("quantize_kv", test_quantize_kv);
  test::section("attention f16", test_attention<kKvF16>);
  test::section("attention f32", test_attention<kKvF32>);
  test::section("attention q8_0", test_attention<kKvQ8_0>);
  test::section("scales", test_scales);
  test::section("no numbers", test_no_numbers);
  return test::finish("attention_test");
}
