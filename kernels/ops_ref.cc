// Scalar element-wise operations and the reference kernel table.
#include <math.h>

#include "kernels/canonical.h"
#include "kernels/kernels.h"

namespace edge_rt {

MatmulKernel matmul_ref(int format);  // matmul_ref.cc
InterleaveKernel interleave_ref(int format);
void attention_ref(const AttentionArgs* a);  // attention_ref.cc
void merge_spans_ref(const float* spans, int n_spans, int n_heads, int head_dim, float* out);
void quantize_kv_ref(const float* x, int head_dim, int8_t* codes, uint16_t* scales);

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

void rope_ref(float* heads, int n_heads, int head_dim, const float* table, int n_pairs,
              bool halves) {
  for (int h = 0; h < n_heads; ++h, heads += head_dim) {
    for (int i = 0; i < n_pairs; ++i) {
      float* a = heads + (halves ? i : 2 * i);
      float* b = heads + (halves ? i + n_pairs : 2 * i + 1);
      const float c = table[i], s = table[n_pairs + i], x = *a, y = *b;
      *a = fmaf(x, c, -(y * s));
      *b = fmaf(x, s, y * c);
    }
  }
}

void add_ref(float* y, const float* x, float factor, int n) {
  for (int j = 0; j < n; ++j) y[j] = y[j] + factor * x[j];
}

namespace {

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

void to_half_ref(const float* x, uint16_t* y, int n) {
  for (int j = 0; j < n; ++j) y[j] = float_to_half(x[j]);
}

}  // namespace

const Kernels* kernels_ref() {
  static const Kernels table = {"ref",           matmul_ref,      quantize_ref, rms_norm_ref,
                                silu_gate_ref,   gelu_gate_ref,   softcap_ref,  attention_ref,
                                merge_spans_ref, quantize_kv_ref, to_half_ref,  rope_ref,
                                add_ref,         interleave_ref};
  return &table;
}

}  // namespace edge_rt
