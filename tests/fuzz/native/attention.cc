// Attention over arbitrary floats as q, k and v: every KV format, windows, rings, soft caps; scalar
// and SIMD give the same bits, and so do a ring and the whole cache, tokens together and one by
// one.
#include <algorithm>
#include <vector>

#include "kernels/kernels.h"
#include "kernels/kv_cache.h"
#include "tests/fuzz/native/input.h"
#include "tests/native/matmul_problem.h"

namespace edge_rt {
namespace {

using fuzz::Input;
using test::Exact;
using test::same_bits;
using test::tables;

void attention(Input& in) {
  const int format = static_cast<int>(in.between(0, 2)), dim = static_cast<int>(in.between(1, 80));
  const int n_heads = static_cast<int>(in.between(1, 4)),
            n_tokens = static_cast<int>(in.between(1, 6));
  const int n = n_tokens + static_cast<int>(in.between(0, 330));
  const int window = in.flag() ? static_cast<int>(in.between(1, n)) : 0;
  const bool tame = in.flag();  // numbers as models have them, so that the sums are finite
  const float scale = tame ? 0.25f : in.take<float>();
  const float cap = in.flag() ? (tame ? 20.0f : in.take<float>()) : 0.0f;
  // A ring of whole tiles that still has every position that a token sees.
  const int first = window > 0 ? std::max(0, n - n_tokens + 1 - window) : 0;
  const int tile_first = first / kAttentionTile * kAttentionTile;
  const int least = (n - tile_first + kAttentionTile - 1) / kAttentionTile * kAttentionTile;
  const int ring = least + kAttentionTile * static_cast<int>(in.between(0, 3));
  const size_t stride = static_cast<size_t>(n_heads) * dim;
  Exact<float> q(n_tokens * stride), scales(n_tokens), x(dim);
  for (int t = 0; t < n_tokens; ++t) scales[t] = scale;
  const auto fill = [&](Exact<float>& values) {
    in.fill(values.data(), values.size() * sizeof(float));
    for (size_t i = 0; tame && i < values.size(); ++i)
      values[i] = static_cast<float>(bits_of(values[i]) % 2001) / 1e3f - 1;
  };
  fill(q);
  Exact<uint8_t> whole_k(kv_head_bytes(format, dim, n)), whole_v(whole_k.size());
  Exact<uint8_t> ring_k(kv_head_bytes(format, dim, ring)), ring_v(ring_k.size());
  for (int p = 0; p < n; ++p) {
    for (const bool is_key : {true, false}) {
      fill(x);
      store_kv(kernels_ref(), format, is_key, x.data(), dim, (is_key ? whole_k : whole_v).data(),
               p);
      store_kv(kernels_ref(), format, is_key, x.data(), dim, (is_key ? ring_k : ring_v).data(),
               p % ring);
    }
  }
  const auto scratch = test::aligned_memory<uint8_t>(attention_scratch_bytes(dim), 64);
  std::vector<Exact<float>> results;
  for (const Kernels* kernels : tables()) {
    for (const bool whole : {true, false}) {
      for (const int together : {n_tokens, 1}) {
        Exact<float> out(n_tokens * stride);
        for (int t = 0; t < n_tokens; t += together) {
          const AttentionArgs args = {format,
                                      q.data() + t * stride,
                                      out.data() + t * stride,
                                      stride,
                                      whole ? whole_k.data() : ring_k.data(),
                                      whole ? whole_v.data() : ring_v.data(),
                                      together,
                                      n_heads,
                                      dim,
                                      whole ? n : ring,
                                      n - n_tokens + t,
                                      window,
                                      scales.data() + t,
                                      cap,
                                      -1,
                                      scratch.get()};
          kernels->attention(&args);
        }
        results.push_back(std::move(out));
      }
    }
  }
  for (const Exact<float>& out : results) REQUIRE(same_bits(out, results[0]));
  if (tame)
    for (size_t i = 0; i < results[0].size(); ++i) REQUIRE(std::isfinite(results[0][i]));
}

}  // namespace
}  // namespace edge_rt

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  edge_rt::fuzz::Input in(data, size);
  edge_rt::attention(in);
  return 0;
}
