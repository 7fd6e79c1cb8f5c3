// Scalar matmuls: the readable truth that the SIMD ones must equal bit for bit.
#include "kernels/canonical.h"
#include "kernels/kernels.h"
#include "kernels/unpack.h"

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

template <typename Block>
void matmul_blocks_ref(const Rows* w, const Activations* x, int n_tokens, const Output* out,
                       uint8_t*) {
  const int n_sub_blocks = w->n_cols / kBlockColumns, per_block = Block::kColumns / kBlockColumns;
  for (int t = 0; t < n_tokens; ++t) {
    const int8_t* codes = x->codes + t * x->stride;
    const float* scales = x->scales + t * (x->stride / kBlockColumns);
    const int16_t* sums = x->sums + t * (x->stride / kBlockColumns * 2);
    for (int r = 0; r < w->n_rows; ++r) {
      float y = 0.0f;
      for (int s = 0; s < n_sub_blocks; ++s) {
        Block block;
        memcpy(&block, w->data + r * w->row_bytes + s / per_block * sizeof block, sizeof block);
        SubBlock sub;
        unpack(block, s % per_block, &sub);
        int dot[2] = {};
        for (int j = 0; j < kBlockColumns; ++j)
          dot[j / 16] += sub.c[j] * codes[s * kBlockColumns + j];
        const int total = sub.k[0] * dot[0] + sub.k[1] * dot[1];
        y = __builtin_fmaf(sub.d * scales[s], (float)total, y);
        if (Block::kHasMin) {
          const int total_x = sub.n[0] * sums[2 * s] + sub.n[1] * sums[2 * s + 1];
          y = __builtin_fmaf(sub.m * scales[s], (float)total_x, y);
        }
      }
      store(out, t, r, y);
    }
  }
}

template <typename Block>
void dequantize_blocks(const uint8_t* row, int n, float* out) {
  for (int first = 0; first < n; first += kBlockColumns, out += kBlockColumns) {
    Block block;
    memcpy(&block, row + first / Block::kColumns * sizeof block, sizeof block);
    SubBlock sub;
    unpack(block, first % Block::kColumns / kBlockColumns, &sub);
    for (int j = 0; j < kBlockColumns; ++j) {
      out[j] = sub.d * (float)sub.k[j / 16] * (float)sub.c[j];
      if (Block::kHasMin) out[j] = out[j] + sub.m * (float)sub.n[j / 16];
    }
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
#define EDGE_RT_DEQUANTIZE(name) \
  case k##name:                  \
    return dequantize_blocks<Block##name>(row, n, out);
      EDGE_RT_BLOCK_FORMATS(EDGE_RT_DEQUANTIZE)
#undef EDGE_RT_DEQUANTIZE
  }
}

MatmulKernel matmul_ref(int format) {
  switch (format) {
    case kF32:
      return matmul_float_ref<widen_f32>;
    case kF16:
      return matmul_float_ref<widen_f16>;
    case kBF16:
      return matmul_float_ref<widen_bf16>;
#define EDGE_RT_MATMUL(name) \
  case k##name:              \
    return matmul_blocks_ref<Block##name>;
      EDGE_RT_BLOCK_FORMATS(EDGE_RT_MATMUL)
#undef EDGE_RT_MATMUL
  }
  return nullptr;
}

}  // namespace edge_rt
