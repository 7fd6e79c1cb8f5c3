// Scalar element-wise operations, softmax attention and the reference kernel table.
#include <math.h>

#include "kernels/canonical.h"
#include "kernels/kernels.h"

namespace edge_rt {

MatmulKernel matmul_ref(int format);
InterleaveKernel interleave_ref(int format);  // matmul_ref.cc

namespace {

void quantize_ref(const float* x, int n, int8_t* codes, float* scales, int16_t* sums) {
  for (int b = 0; b < n / kBlockColumns; ++b, x += kBlockColumns, codes += kBlockColumns) {
    float peak = 0.0f;
    for (int j = 0; j < kBlockColumns; ++j) peak = fabsf(x[j]) > peak ? fabsf(x[j]) : peak;
    const float d = peak / 127.0f;
    const float inverse = d != 0.0f ? 1.0f / d : 0.0f;
    int sum[2] = {};
    for (int j = 0; j < kBlockColumns; ++j) {
      // A subnormal d has an inverse of infinity: the clamp keeps the code inside int8.
      const float code = rintf(x[j] * inverse);
      codes[j] = (int8_t)(code > 127.0f    ? 127.0f
                          : code < -127.0f ? -127.0f
                          : code == code   ? code
                                           : 0.0f);
      sum[j / 16] += codes[j];
    }
    scales[b] = d;
    for (int h = 0; h < 2; ++h) sums[2 * b + h] = (int16_t)sum[h];
  }
}

void rms_norm_ref(const float* x, const float* weight, int n, float eps, float* y) {
  float lane[8] = {};
  for (int j = 0; j < n; ++j) lane[j % 8] = fmaf(x[j], x[j], lane[j % 8]);
  const float r = 1.0f / sqrtf(reduce8(lane) / (float)n + eps);
  for (int j = 0; j < n; ++j) y[j] = x[j] * r * weight[j];
}

void silu_gate_ref(float* gate, const float* up, int n) {
  for (int j = 0; j < n; ++j) gate[j] = canonical_silu_gate(gate[j], up[j]);
}

void gelu_gate_ref(float* gate, const float* up, int n) {
  for (int j = 0; j < n; ++j) gate[j] = canonical_gelu_gate(gate[j], up[j]);
}

void softcap_ref(float* x, int n, float cap) {
  for (int j = 0; j < n; ++j) x[j] = canonical_softcap(x[j], cap);
}

float widen_kv(const uint16_t* p) { return half_to_float(*p); }
float widen_kv(const float* p) { return *p; }

template <typename Kv>
void attention_ref(const AttentionArgs* a) {
  const size_t n = (size_t)a->head_dim;
  float peak = -INFINITY, total = 0.0f;
  for (size_t d = 0; d < n; ++d) a->out[d] = 0.0f;
  const int start = a->first - a->first % kAttentionTile;
  for (int first = start; first < a->n_positions; first += kAttentionTile) {
    const int left = a->n_positions - first;
    const int count = left < kAttentionTile ? left : kAttentionTile;
    const Kv* k = (const Kv*)a->k + (size_t)(first % a->ring) * n;
    const Kv* v = (const Kv*)a->v + (size_t)(first % a->ring) * n;
    const int skipped = a->first > first ? a->first - first : 0;  // before the window
    float s[kAttentionTile], tile_peak = peak;
    for (int i = 0; i < skipped; ++i) s[i] = -INFINITY;
    for (int i = skipped; i < count; ++i) {
      float lane[8] = {};
      for (size_t d = 0; d < n; ++d)
        lane[d % 8] = fmaf(a->q[d], widen_kv(k + i * n + d), lane[d % 8]);
      s[i] = reduce8(lane) * a->scale;
      if (a->cap != 0.0f) s[i] = canonical_softcap(s[i], a->cap);
      tile_peak = s[i] > tile_peak ? s[i] : tile_peak;
    }
    const float keep = canonical_exp(peak - tile_peak);
    float lane[8] = {};
    for (int i = 0; i < count; ++i) {
      s[i] = canonical_exp(s[i] - tile_peak);
      lane[i % 8] = lane[i % 8] + s[i];
    }
    total = fmaf(total, keep, reduce8(lane));
    for (size_t d = 0; d < n; ++d) {
      float sum = a->out[d] * keep;
      for (int i = skipped; i < count; ++i) sum = fmaf(s[i], widen_kv(v + i * n + d), sum);
      a->out[d] = sum;
    }
    peak = tile_peak;
  }
  for (size_t d = 0; d < n; ++d) a->out[d] = a->out[d] / total;
}

void to_half_ref(const float* x, uint16_t* y, int n) {
  for (int j = 0; j < n; ++j) y[j] = float_to_half(x[j]);
}

}  // namespace

const Kernels* kernels_ref() {
  static const Kernels table = {"ref",
                                matmul_ref,
                                quantize_ref,
                                rms_norm_ref,
                                silu_gate_ref,
                                gelu_gate_ref,
                                softcap_ref,
                                attention_ref<uint16_t>,
                                attention_ref<float>,
                                to_half_ref,
                                interleave_ref};
  return &table;
}

}  // namespace edge_rt
