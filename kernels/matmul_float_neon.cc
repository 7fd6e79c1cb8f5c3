// NEON matmuls with float weights. See CONTRIBUTING.md, "add a kernel ISA".
#include <arm_neon.h>

#include "kernels/canonical.h"
#include "kernels/kernels.h"

namespace edge_rt {
namespace {

struct Eight {
  float32x4_t low, high;  // columns 0..3 and 4..7
};

struct WidenF32 {
  enum { kBytes = 4 };
  static Eight load8(const uint8_t* p) {
    return {vreinterpretq_f32_u8(vld1q_u8(p)), vreinterpretq_f32_u8(vld1q_u8(p + 16))};
  }
  static float load1(const uint8_t* p) { return load_f32(p); }
};
struct WidenF16 {
  enum { kBytes = 2 };
  static Eight load8(const uint8_t* p) {
    const float16x8_t h = vreinterpretq_f16_u8(vld1q_u8(p));
    return {vcvt_f32_f16(vget_low_f16(h)), vcvt_high_f32_f16(h)};
  }
  static float load1(const uint8_t* p) { return half_to_float(load_u16(p)); }
};
struct WidenBF16 {
  enum { kBytes = 2 };
  static Eight load8(const uint8_t* p) {
    const uint16x8_t b = vreinterpretq_u16_u8(vld1q_u8(p));
    return {vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(b), 16)),
            vreinterpretq_f32_u32(vshll_high_n_u16(b, 16))};
  }
  static float load1(const uint8_t* p) { return bf16_to_float(load_u16(p)); }
};

template <typename W, int kTokens>
void float_rows(const Rows* w, const Activations* x, int token, const Output* out) {
  enum { kRows = 4 };
  const int whole = w->n_cols & ~7;
  for (int first = 0; first < w->n_rows; first += kRows) {
    const int count = w->n_rows - first < kRows ? w->n_rows - first : kRows;
    const uint8_t* row[kRows];
    for (int i = 0; i < kRows; ++i)
      row[i] = w->data + (size_t)(first + (i < count ? i : count - 1)) * w->row_bytes;
    Eight acc[kTokens][kRows];
    for (int t = 0; t < kTokens; ++t)
      for (int i = 0; i < kRows; ++i) acc[t][i] = {vdupq_n_f32(0), vdupq_n_f32(0)};
    for (int j = 0; j < whole; j += 8) {
      Eight v[kRows];
      for (int i = 0; i < kRows; ++i) v[i] = W::load8(row[i] + (size_t)j * W::kBytes);
      for (int t = 0; t < kTokens; ++t) {
        const float* values = x->values + (token + t) * x->stride + j;
        const Eight u = {vld1q_f32(values), vld1q_f32(values + 4)};
        for (int i = 0; i < kRows; ++i)
          acc[t][i] = {vfmaq_f32(acc[t][i].low, v[i].low, u.low),
                       vfmaq_f32(acc[t][i].high, v[i].high, u.high)};
      }
    }
    for (int t = 0; t < kTokens; ++t) {
      const float* values = x->values + (token + t) * x->stride;
      for (int i = 0; i < count; ++i) {
        float lane[8];
        vst1q_f32(lane, acc[t][i].low);
        vst1q_f32(lane + 4, acc[t][i].high);
        for (int j = whole; j < w->n_cols; ++j)
          lane[j % 8] =
              __builtin_fmaf(W::load1(row[i] + (size_t)j * W::kBytes), values[j], lane[j % 8]);
        float* y = out->y + (token + t) * out->stride + first + i;
        *y = out->accumulate ? *y + reduce8(lane) : reduce8(lane);
      }
    }
  }
}

template <typename W>
void matmul_float(const Rows* w, const Activations* x, int n_tokens, const Output* out, uint8_t*) {
  int t = 0;
  for (; t + 2 <= n_tokens; t += 2) float_rows<W, 2>(w, x, t, out);
  if (t < n_tokens) float_rows<W, 1>(w, x, t, out);
}

}  // namespace

MatmulKernel matmul_float_neon(int format) {
  switch (format) {
    case kF32:
      return matmul_float<WidenF32>;
    case kF16:
      return matmul_float<WidenF16>;
    case kBF16:
      return matmul_float<WidenBF16>;
  }
  return nullptr;
}

}  // namespace edge_rt
