// Scalar matmuls: the readable truth that the SIMD ones must equal bit for bit.
#include "kernels/canonical.h"
#include "kernels/kernels.h"

namespace edge_rt {
namespace {

void store(const Output* out, int token, int row, float value) {
  float* y = out->y + token * out->stride + row;
  *y = out->accumulate ? *y + value : value;
}

float widen_f32(const uint8_t* p, int j) { return load_f32(p + 4 * (size_t)j); }
float widen_f16(const uint8_t* p, int j) { return half_to_float(load_u16(p + 2 * (size_t)j)); }
float widen_bf16(const uint8_t* p, int j) { return bf16_to_float(load_u16(p + 2 * (size_t)j)); }

template <float (*kWiden)(const uint8_t*, int)>
void matmul_float_ref(const Rows* w, const Activations* x, int n_tokens, const Output* out,
                      uint8_t*) {
  for (int t = 0; t < n_tokens; ++t) {
    const float* values = x->values + t * x->stride;
    for (int r = 0; r < w->n_rows; ++r) {
      const uint8_t* row = w->data + r * w->row_bytes;
      float lane[8] = {};
      for (int j = 0; j < w->n_cols; ++j)
        lane[j % 8] = __builtin_fmaf(kWiden(row, j), values[j], lane[j % 8]);
      store(out, t, r, reduce8(lane));
    }
  }
}

// Weight code of column j; min_scale is m for the formats that have one, else 0.
int code(const BlockQ4_0* b, int j) { return ((b->codes[j % 16] >> (j < 16 ? 0 : 4)) & 15) - 8; }
int code(const BlockQ4_1* b, int j) { return (b->codes[j % 16] >> (j < 16 ? 0 : 4)) & 15; }
int code(const BlockQ8_0* b, int j) { return b->codes[j]; }

float add_min(const BlockQ4_0*, float, int32_t, float y) { return y; }
float add_min(const BlockQ8_0*, float, int32_t, float y) { return y; }
float add_min(const BlockQ4_1* b, float dx, int32_t sum, float y) {
  return __builtin_fmaf(half_to_float(b->m) * dx, (float)sum, y);
}

template <typename Block>
void matmul_quantized_ref(const Rows* w, const Activations* x, int n_tokens, const Output* out,
                          uint8_t*) {
  const int n_blocks = w->n_cols / kBlockColumns;
  for (int t = 0; t < n_tokens; ++t) {
    const int8_t* codes = x->codes + t * x->stride;
    const float* scales = x->scales + t * (x->stride / kBlockColumns);
    const int32_t* sums = x->sums + t * (x->stride / kBlockColumns);
    for (int r = 0; r < w->n_rows; ++r) {
      float y = 0.0f;
      for (int b = 0; b < n_blocks; ++b) {
        Block block;
        memcpy(&block, w->data + r * w->row_bytes + b * sizeof block, sizeof block);
        int32_t s = 0;
        for (int j = 0; j < kBlockColumns; ++j) s += code(&block, j) * codes[b * kBlockColumns + j];
        y = __builtin_fmaf(half_to_float(block.d) * scales[b], (float)s, y);
        y = add_min(&block, scales[b], sums[b], y);
      }
      store(out, t, r, y);
    }
  }
}

template <typename Block>
void dequantize_blocks(const uint8_t* row, int n, float* out) {
  for (int j = 0; j < n; ++j) {
    Block block;
    memcpy(&block, row + j / kBlockColumns * sizeof block, sizeof block);
    out[j] = half_to_float(block.d) * (float)code(&block, j % kBlockColumns);
    if constexpr (sizeof block == sizeof(BlockQ4_1)) out[j] = out[j] + half_to_float(block.m);
  }
}

template <float (*kWiden)(const uint8_t*, int)>
void widen_row(const uint8_t* row, int n, float* out) {
  for (int j = 0; j < n; ++j) out[j] = kWiden(row, j);
}

}  // namespace

void dequantize_row(int format, const uint8_t* row, int n, float* out) {
  switch (format) {
    case kF32:
      return widen_row<widen_f32>(row, n, out);
    case kF16:
      return widen_row<widen_f16>(row, n, out);
    case kBF16:
      return widen_row<widen_bf16>(row, n, out);
    case kQ4_0:
      return dequantize_blocks<BlockQ4_0>(row, n, out);
    case kQ4_1:
      return dequantize_blocks<BlockQ4_1>(row, n, out);
    case kQ8_0:
      return dequantize_blocks<BlockQ8_0>(row, n, out);
  }
}

extern const MatmulKernel kMatmulF32Ref = matmul_float_ref<widen_f32>;
extern const MatmulKernel kMatmulF16Ref = matmul_float_ref<widen_f16>;
extern const MatmulKernel kMatmulBF16Ref = matmul_float_ref<widen_bf16>;
extern const MatmulKernel kMatmulQ4_0Ref = matmul_quantized_ref<BlockQ4_0>;
extern const MatmulKernel kMatmulQ4_1Ref = matmul_quantized_ref<BlockQ4_1>;
extern const MatmulKernel kMatmulQ8_0Ref = matmul_quantized_ref<BlockQ8_0>;

}  // namespace edge_rt
