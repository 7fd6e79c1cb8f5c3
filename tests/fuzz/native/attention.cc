// Attention over arbitrary bytes as q, k and v: windows, rings, soft caps; scalar and SIMD give the
// same bits, and a ring the bits of the whole cache.
#include <vector>

#include "kernels/kernels.h"
#include "tests/fuzz/native/input.h"
#include "tests/native/matmul_problem.h"

namespace edge_rt {
namespace {

using fuzz::Input;
using test::Exact;
using test::same_bits;
using test::tables;

template <typename Kv>
void attention(Input& in) {
  const int dim = static_cast<int>(in.between(1, 80));
  const int n = static_cast<int>(in.between(1, 140));
  const int first = static_cast<int>(in.between(0, n - 1));
  const bool tame = in.flag();  // numbers as models have them, so that the sums are finite
  const float scale = tame ? 0.25f : in.take<float>();
  const float cap = in.flag() ? (tame ? 20.0f : in.take<float>()) : 0.0f;
  // A ring of whole tiles that still has every position from `first` on.
  const int tile_first = first / kAttentionTile * kAttentionTile;
  const int least = (n - tile_first + kAttentionTile - 1) / kAttentionTile * kAttentionTile;
  const int ring = least + kAttentionTile * static_cast<int>(in.between(0, 3));
  Exact<float> q(dim);
  Exact<Kv> k(static_cast<size_t>(n) * dim), v(k.size());
  in.fill(q.data(), dim * sizeof(float));
  in.fill(k.data(), k.size() * sizeof(Kv));
  in.fill(v.data(), v.size() * sizeof(Kv));
  if (tame) {
    for (size_t i = 0; i < q.size(); ++i)
      q[i] = static_cast<float>(bits_of(q[i]) % 2001) / 1e3f - 1;
    for (Exact<Kv>* kv : {&k, &v}) {
      for (size_t i = 0; i < kv->size(); ++i) {
        if constexpr (sizeof(Kv) == 2) {
          (*kv)[i] = static_cast<uint16_t>(((*kv)[i] & 0x83ff) | 0x3800);
        } else {
          (*kv)[i] = static_cast<float>(bits_of((*kv)[i]) % 2001) / 1e3f - 1;
        }
      }
    }
  }
  Exact<Kv> ring_k(static_cast<size_t>(ring) * dim), ring_v(ring_k.size());
  for (int p = 0; p < n; ++p) {
    std::memcpy(ring_k.data() + p % ring * dim, k.data() + p * dim, dim * sizeof(Kv));
    std::memcpy(ring_v.data() + p % ring * dim, v.data() + p * dim, dim * sizeof(Kv));
  }
  std::vector<Exact<float>> results;
  for (const Kernels* kernels : tables()) {
    for (const bool whole : {true, false}) {
      Exact<float> out(dim);
      const AttentionArgs args = {q.data(),
                                  whole ? k.data() : ring_k.data(),
                                  whole ? v.data() : ring_v.data(),
                                  out.data(),
                                  dim,
                                  n,
                                  scale,
                                  first,
                                  cap,
                                  whole ? n : ring};
      (sizeof(Kv) == 2 ? kernels->attention_f16 : kernels->attention_f32)(&args);
      results.push_back(std::move(out));
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
  in.flag() ? edge_rt::attention<uint16_t>(in) : edge_rt::attention<float>(in);
  return 0;
}
