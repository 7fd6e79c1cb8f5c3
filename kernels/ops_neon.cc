// NEON element-wise operations, softmax attention and the kernel tables of these ISAs.
#include <arm_neon.h>
#include <math.h>

#include "kernels/canonical.h"
#include "kernels/kernels.h"

namespace edge_rt {

MatmulKernel matmul_float_neon(int format);  // matmul_*neon.cc; null: not among theirs
MatmulKernel matmul_blocks_neon(int format);
MatmulKernel matmul_blocks_dotprod_neon(int format);
MatmulKernel matmul_blocks_i8mm_neon(int format);

namespace {

struct Eight {
  float32x4_t low, high;
};

float sum_of(Eight lanes) {  // reduce8
  const float32x4_t four = vaddq_f32(lanes.low, lanes.high);
  const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
  return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}

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

float32x4_t exp4(float32x4_t x) {  // canonical_exp, four at a time
  const uint32x4_t vanish = vcltq_f32(x, vdupq_n_f32(kExpLowest));
  x = vminq_f32(x, vdupq_n_f32(kExpHighest));  // a NaN stays one
  const float32x4_t n = vrndnq_f32(vmulq_n_f32(x, kLog2E));
  float32x4_t r = vfmaq_f32(x, n, vdupq_n_f32(-kLn2High));
  r = vfmaq_f32(r, n, vdupq_n_f32(-kLn2Low));
  float32x4_t p = vdupq_n_f32(kExpPolynomial[0]);
  for (int i = 1; i < kExpTerms; ++i) p = vfmaq_f32(vdupq_n_f32(kExpPolynomial[i]), p, r);
  p = vfmaq_f32(vdupq_n_f32(1.0f), p, r);
  const uint32x4_t shifted = vshlq_n_u32(vreinterpretq_u32_s32(vcvtq_s32_f32(n)), 23);
  return vreinterpretq_f32_u32(vbicq_u32(vaddq_u32(vreinterpretq_u32_f32(p), shifted), vanish));
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

float32x4_t tanh4(float32x4_t x) {  // canonical_tanh, four at a time
  const float32x4_t one = vdupq_n_f32(1.0f), size = vabsq_f32(x), square = vmulq_f32(x, x);
  float32x4_t p = vdupq_n_f32(kTanhSeries[0]);
  for (int i = 1; i < kTanhTerms; ++i) p = vfmaq_f32(vdupq_n_f32(kTanhSeries[i]), p, square);
  const float32x4_t e = exp4(vmulq_n_f32(size, -2.0f));
  const float32x4_t far = vdivq_f32(vsubq_f32(one, e), vaddq_f32(one, e));
  const float32x4_t signed_far = vbslq_f32(vdupq_n_u32(0x80000000u), x, far);
  const uint32x4_t near = vcltq_f32(size, vdupq_n_f32(kTanhSeriesEnd));
  return vbslq_f32(near, vmulq_f32(p, x), signed_far);
}

void softcap_neon(float* x, int n, float cap) {
  const float32x4_t caps = vdupq_n_f32(cap);
  const int whole = n & ~3;
  for (int j = 0; j < whole; j += 4)
    vst1q_f32(x + j, vmulq_f32(tanh4(vdivq_f32(vld1q_f32(x + j), caps)), caps));
  for (int j = whole; j < n; ++j) x[j] = canonical_softcap(x[j], cap);
}

Eight load_kv8(const uint16_t* p) {
  const float16x8_t h = vreinterpretq_f16_u16(vld1q_u16(p));
  return {vcvt_f32_f16(vget_low_f16(h)), vcvt_high_f32_f16(h)};
}
Eight load_kv8(const float* p) { return {vld1q_f32(p), vld1q_f32(p + 4)}; }
float load_kv(const uint16_t* p) { return half_to_float(*p); }
float load_kv(const float* p) { return *p; }

template <typename Kv>
float dot(const float* q, const Kv* k, int n) {
  Eight acc = {vdupq_n_f32(0), vdupq_n_f32(0)};
  const int whole = n & ~7;
  for (int d = 0; d < whole; d += 8) {
    const Eight kv = load_kv8(k + d);
    acc = {vfmaq_f32(acc.low, vld1q_f32(q + d), kv.low),
           vfmaq_f32(acc.high, vld1q_f32(q + d + 4), kv.high)};
  }
  if (whole == n) return sum_of(acc);
  float lane[8];
  vst1q_f32(lane, acc.low);
  vst1q_f32(lane + 4, acc.high);
  for (int d = whole; d < n; ++d) lane[d % 8] = __builtin_fmaf(q[d], load_kv(k + d), lane[d % 8]);
  return reduce8(lane);
}

template <typename Kv>
void attention_neon(const AttentionArgs* a) {
  const int n = a->head_dim, whole = n & ~7;
  float peak = -INFINITY, total = 0.0f;
  for (int d = 0; d < n; ++d) a->out[d] = 0.0f;
  const int start = a->first - a->first % kAttentionTile;
  for (int first = start; first < a->n_positions; first += kAttentionTile) {
    const int left = a->n_positions - first;
    const int count = left < kAttentionTile ? left : kAttentionTile;
    const int skipped = a->first > first ? a->first - first : 0;  // before the window
    const Kv* k = (const Kv*)a->k + (size_t)(first % a->ring) * n;
    const Kv* v = (const Kv*)a->v + (size_t)(first % a->ring) * n;
    float s[kAttentionTile], tile_peak = peak;
    for (int i = 0; i < skipped; ++i) s[i] = -INFINITY;
    for (int i = skipped; i < count; ++i) s[i] = dot(a->q, k + (size_t)i * n, n) * a->scale;
    if (a->cap != 0.0f) softcap_neon(s + skipped, count - skipped, a->cap);
    for (int i = skipped; i < count; ++i) tile_peak = s[i] > tile_peak ? s[i] : tile_peak;
    const float keep = canonical_exp(peak - tile_peak);
    const float32x4_t peaks = vdupq_n_f32(tile_peak);
    float lane[8];
    const int whole_scores = count & ~7;
    Eight sums = {vdupq_n_f32(0), vdupq_n_f32(0)};
    for (int i = 0; i < whole_scores; i += 8) {
      const Eight e = {exp4(vsubq_f32(vld1q_f32(s + i), peaks)),
                       exp4(vsubq_f32(vld1q_f32(s + i + 4), peaks))};
      vst1q_f32(s + i, e.low);
      vst1q_f32(s + i + 4, e.high);
      sums = {vaddq_f32(sums.low, e.low), vaddq_f32(sums.high, e.high)};
    }
    vst1q_f32(lane, sums.low);
    vst1q_f32(lane + 4, sums.high);
    for (int i = whole_scores; i < count; ++i) {
      s[i] = canonical_exp(s[i] - tile_peak);
      lane[i % 8] = lane[i % 8] + s[i];
    }
    total = __builtin_fmaf(total, keep, reduce8(lane));
    for (int d = 0; d < whole; d += 8) {
      Eight sum = {vmulq_n_f32(vld1q_f32(a->out + d), keep),
                   vmulq_n_f32(vld1q_f32(a->out + d + 4), keep)};
      for (int i = skipped; i < count; ++i) {
        const Eight kv = load_kv8(v + (size_t)i * n + d);
        sum = {vfmaq_n_f32(sum.low, kv.low, s[i]), vfmaq_n_f32(sum.high, kv.high, s[i])};
      }
      vst1q_f32(a->out + d, sum.low);
      vst1q_f32(a->out + d + 4, sum.high);
    }
    for (int d = whole; d < n; ++d) {
      float sum = a->out[d] * keep;
      for (int i = skipped; i < count; ++i)
        sum = __builtin_fmaf(s[i], load_kv(v + (size_t)i * n + d), sum);
      a->out[d] = sum;
    }
    peak = tile_peak;
  }
  for (int d = 0; d < n; ++d) a->out[d] = a->out[d] / total;
}

void to_half_neon(const float* x, uint16_t* y, int n) {
  const int whole = n & ~3;
  for (int j = 0; j < whole; j += 4)
    vst1_u16(y + j, vreinterpret_u16_f16(vcvt_f16_f32(vld1q_f32(x + j))));
  for (int j = whole; j < n; ++j) y[j] = float_to_half(x[j]);
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
  table.attention_f16 = attention_neon<uint16_t>;
  table.attention_f32 = attention_neon<float>;
  table.to_half = to_half_neon;
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
