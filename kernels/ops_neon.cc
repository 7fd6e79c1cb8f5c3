// NEON element-wise operations and the kernel tables of these ISAs.
#include "kernels/ops_neon.h"

#include <arm_neon.h>
#include <math.h>
#include <string.h>

#include "kernels/canonical.h"
#include "kernels/kernels.h"

namespace edge_rt {

MatmulKernel matmul_float_neon(int format);  // matmul_*neon.cc; null: not among theirs
MatmulKernel matmul_blocks_neon(int format);
MatmulKernel matmul_blocks_dotprod_neon(int format);
MatmulKernel matmul_blocks_i8mm_neon(int format);
InterleaveKernel interleave_neon(int format);
void attention_neon(const AttentionArgs* a);  // attention_neon.cc
void merge_spans_neon(const float* spans, int n_spans, int n_heads, int head_dim, float* out);

void quantize_neon(const float* x, int n, int8_t* codes, float* scales, int16_t* sums) {
  for (int b = 0; b < n / kBlockColumns; ++b, x += kBlockColumns, codes += kBlockColumns) {
    float32x4_t v[8], peaks = vdupq_n_f32(0);
    for (int i = 0; i < 8; ++i) {
      v[i] = vld1q_f32(x + 4 * i);
      const float32x4_t size = vabsq_f32(v[i]);
      peaks = vbslq_f32(vcgtq_f32(size, peaks), size, peaks);  // a NaN leaves peaks as they are
    }
    const float d = vmaxvq_f32(peaks) / 127.0f;
    const float inverse = d != 0.0f ? 1.0f / d : 0.0f;
    const int32x4_t high = vdupq_n_s32(127), low = vdupq_n_s32(-127);
    int16x8_t q[4];
    for (int i = 0; i < 4; ++i) {  // the conversion makes 0 of a NaN and saturates
      const int32x4_t c0 = vcvtnq_s32_f32(vmulq_n_f32(v[2 * i], inverse));
      const int32x4_t c1 = vcvtnq_s32_f32(vmulq_n_f32(v[2 * i + 1], inverse));
      q[i] = vcombine_s16(vmovn_s32(vmaxq_s32(vminq_s32(c0, high), low)),
                          vmovn_s32(vmaxq_s32(vminq_s32(c1, high), low)));
    }
    for (int h = 0; h < 2; ++h) {
      vst1q_s8(codes + 16 * h, vcombine_s8(vmovn_s16(q[2 * h]), vmovn_s16(q[2 * h + 1])));
      sums[2 * b + h] = vaddvq_s16(vaddq_s16(q[2 * h], q[2 * h + 1]));
    }
    scales[b] = d;
  }
}

namespace {

struct Eight {
  float32x4_t low, high;
};

void rms_norm_neon(const float* x, const float* weight, int n, float eps, float* y) {
  Eight acc = {vdupq_n_f32(0), vdupq_n_f32(0)};
  const int whole = n & ~7;
  for (int j = 0; j < whole; j += 8) {
    const float32x4_t low = vld1q_f32(x + j), high = vld1q_f32(x + j + 4);
    acc = {vfmaq_f32(acc.low, low, low), vfmaq_f32(acc.high, high, high)};
  }
  float lane[8];
  vst1q_f32(lane, acc.low);
  vst1q_f32(lane + 4, acc.high);
  for (int j = whole; j < n; ++j) lane[j % 8] = __builtin_fmaf(x[j], x[j], lane[j % 8]);
  const float r = 1.0f / sqrtf(reduce8(lane) / (float)n + eps);
  for (int j = 0; j < whole; j += 4)
    vst1q_f32(y + j, vmulq_f32(vmulq_n_f32(vld1q_f32(x + j), r), vld1q_f32(weight + j)));
  for (int j = whole; j < n; ++j) y[j] = x[j] * r * weight[j];
}

void silu_gate_neon(float* gate, const float* up, int n) {
  const int whole = n & ~3;
  for (int j = 0; j < whole; j += 4) {
    const float32x4_t g = vld1q_f32(gate + j);
    const float32x4_t below = vaddq_f32(vdupq_n_f32(1.0f), exp4(vnegq_f32(g)));
    vst1q_f32(gate + j, vmulq_f32(vdivq_f32(g, below), vld1q_f32(up + j)));
  }
  for (int j = whole; j < n; ++j) gate[j] = canonical_silu_gate(gate[j], up[j]);
}

void gelu_gate_neon(float* gate, const float* up, int n) {
  const float32x4_t one = vdupq_n_f32(1.0f);
  const int whole = n & ~3;
  for (int j = 0; j < whole; j += 4) {
    const float32x4_t g = vld1q_f32(gate + j);
    const float32x4_t inner = vfmaq_f32(one, vdupq_n_f32(kGeluCubic), vmulq_f32(g, g));
    const float32x4_t twice_u = vmulq_n_f32(vmulq_f32(g, inner), kGeluTwice);
    const float32x4_t below = vaddq_f32(one, exp4(vnegq_f32(twice_u)));
    vst1q_f32(gate + j, vmulq_f32(vdivq_f32(g, below), vld1q_f32(up + j)));
  }
  for (int j = whole; j < n; ++j) gate[j] = canonical_gelu_gate(gate[j], up[j]);
}

void to_half_neon(const float* x, uint16_t* y, int n) {
  const int whole = n & ~3;
  for (int j = 0; j < whole; j += 4)
    vst1_u16(y + j, vreinterpret_u16_f16(vcvt_f16_f32(vld1q_f32(x + j))));
  for (int j = whole; j < n; ++j) y[j] = float_to_half(x[j]);
}

void quantize_kv_neon(const float* x, int head_dim, int8_t* codes, uint16_t* scales) {
  const float32x4_t infinity = vdupq_n_f32(INFINITY);
  const int32x4_t high = vdupq_n_s32(127), low = vdupq_n_s32(-127);
  for (int first = 0; first < head_dim; first += 32, x += 32, codes += 32, ++scales) {
    float padded[32] = {};
    const int n = head_dim - first < 32 ? head_dim - first : 32;
    if (n < 32) memcpy(padded, x, (size_t)n * sizeof *x);
    const float* block = n < 32 ? padded : x;
    float32x4_t v[8], peaks = vdupq_n_f32(0);
    uint32x4_t finite = vdupq_n_u32(~0u);
    for (int i = 0; i < 8; ++i) {
      v[i] = vld1q_f32(block + 4 * i);
      const float32x4_t size = vabsq_f32(v[i]);
      peaks = vmaxq_f32(peaks, size);
      finite = vandq_u32(finite, vcltq_f32(size, infinity));
    }
    const bool all_finite = vminvq_u32(finite) != 0;
    *scales = all_finite ? float_to_half(vmaxvq_f32(peaks) / 127.0f) : 0x7e00;
    const float d = half_to_float(*scales);
    const float inverse = d > 0.0f ? 1.0f / d : 0.0f;
    const uint32x4_t kept = vdupq_n_u32(all_finite ? ~0u : 0);
    int16x8_t q[4];
    for (int i = 0; i < 4; ++i) {
      int32x4_t code[2];
      for (int h = 0; h < 2; ++h) {
        const uint32x4_t bits = vandq_u32(vreinterpretq_u32_f32(v[2 * i + h]), kept);
        code[h] = vcvtnq_s32_f32(vmulq_n_f32(vreinterpretq_f32_u32(bits), inverse));
        code[h] = vmaxq_s32(vminq_s32(code[h], high), low);
      }
      q[i] = vcombine_s16(vmovn_s32(code[0]), vmovn_s32(code[1]));
    }
    for (int h = 0; h < 2; ++h)
      vst1q_s8(codes + 16 * h, vcombine_s8(vmovn_s16(q[2 * h]), vmovn_s16(q[2 * h + 1])));
  }
}

void rope_neon(float* heads, int n_heads, int head_dim, const float* table, int n_pairs,
               bool halves) {
  const int whole = n_pairs & ~3;
  for (int h = 0; h < n_heads; ++h, heads += head_dim) {
    for (int i = 0; i < whole; i += 4) {
      const float32x4_t c = vld1q_f32(table + i), s = vld1q_f32(table + n_pairs + i);
      float32x4x2_t pairs;
      if (halves) {
        pairs.val[0] = vld1q_f32(heads + i);
        pairs.val[1] = vld1q_f32(heads + i + n_pairs);
      } else {
        pairs = vld2q_f32(heads + 2 * i);
      }
      const float32x4_t x = pairs.val[0], y = pairs.val[1];
      pairs.val[0] = vfmaq_f32(vnegq_f32(vmulq_f32(y, s)), x, c);
      pairs.val[1] = vfmaq_f32(vmulq_f32(y, c), x, s);
      if (halves) {
        vst1q_f32(heads + i, pairs.val[0]);
        vst1q_f32(heads + i + n_pairs, pairs.val[1]);
      } else {
        vst2q_f32(heads + 2 * i, pairs);
      }
    }
    for (int i = whole; i < n_pairs; ++i) {
      float* a = heads + (halves ? i : 2 * i);
      float* b = heads + (halves ? i + n_pairs : 2 * i + 1);
      const float c = table[i], s = table[n_pairs + i], x = *a, y = *b;
      *a = __builtin_fmaf(x, c, -(y * s));
      *b = __builtin_fmaf(x, s, y * c);
    }
  }
}

void add_neon(float* y, const float* x, float factor, int n) {
  const int whole = n & ~3;
  for (int j = 0; j < whole; j += 4)
    vst1q_f32(y + j, vaddq_f32(vld1q_f32(y + j), vmulq_n_f32(vld1q_f32(x + j), factor)));
  for (int j = whole; j < n; ++j) y[j] = y[j] + factor * x[j];
}

template <MatmulKernel (*kBlocks)(int)>
MatmulKernel matmul(int format) {
  const MatmulKernel found = matmul_float_neon(format);
  return found != nullptr ? found : kBlocks(format);
}

// Only the integer products of blocks know more than ARMv8.0.
constexpr Kernels table(const char* name, MatmulKernel (*matmul_of)(int)) {
  Kernels table = {};
  table.name = name;
  table.matmul = matmul_of;
  table.quantize = quantize_neon;
  table.rms_norm = rms_norm_neon;
  table.silu_gate = silu_gate_neon;
  table.gelu_gate = gelu_gate_neon;
  table.softcap = softcap_neon;
  table.to_half = to_half_neon;
  table.attention = attention_neon;
  table.merge_spans = merge_spans_neon;
  table.quantize_kv = quantize_kv_neon;
  table.rope = rope_neon;
  table.add = add_neon;
  table.interleave = interleave_neon;
  return table;
}

}  // namespace

const Kernels* kernel_table_neon() {
  static constexpr Kernels kTable = table("neon", matmul<matmul_blocks_neon>);
  return &kTable;
}

const Kernels* kernel_table_dotprod_neon() {
  static constexpr Kernels kTable = table("neon_dotprod", matmul<matmul_blocks_dotprod_neon>);
  return &kTable;
}

const Kernels* kernel_table_i8mm_neon() {
  static constexpr Kernels kTable = table("neon_i8mm", matmul<matmul_blocks_i8mm_neon>);
  return &kTable;
}

}  // namespace edge_rt
