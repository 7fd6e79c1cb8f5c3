// Scalar matmuls: the readable truth that the SIMD ones must equal bit for bit.
#include <type_traits>

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

// Byte `at` of a field of `bytes` bytes of one block, row `row` of eight interleaved ones.
size_t interleaved_byte(int at, int bytes, int row) {
  return static_cast<size_t>(at) * kInterleavedRows + row * bytes;
}

// Eight rows of one interleaved block, from (kScatter) or to the block of row `row`.
template <typename Block, bool kScatter>
void move_block(std::conditional_t<kScatter, uint8_t, const uint8_t>* eight, int row,
                std::conditional_t<kScatter, const uint8_t, uint8_t>* block) {
  const auto move = [](auto* interleaved, auto* in_file, size_t n) {
    if constexpr (kScatter)
      memcpy(interleaved, in_file, n);
    else
      memcpy(in_file, interleaved, n);
  };
  constexpr SmallFields small = Block::kSmall;
  constexpr int kSmallBytes = Interleaving<Block>::kSmallBytes;
  for (int i = 0; i < small.n; ++i)
    move(eight + interleaved_byte(i * small.bytes, small.bytes, row),
         block + small.at + i * small.bytes, small.bytes);
  for (int i = 0; i < Interleaving<Block>::kWords; ++i)
    move(eight + interleaved_byte(kSmallBytes + 4 * i, 4, row),
         block + Interleaving<Block>::kFirstWord + 4 * i, 4);
}

template <typename Block>
void interleave_rows(uint8_t* rows, size_t row_bytes, int n_rows, uint8_t* scratch) {
  const size_t group = kInterleavedRows * row_bytes;
  for (; n_rows >= kInterleavedRows; n_rows -= kInterleavedRows, rows += group) {
    memcpy(scratch, rows, group);
    for (size_t at = 0; at < row_bytes; at += sizeof(Block))
      for (int r = 0; r < kInterleavedRows; ++r)
        move_block<Block, true>(rows + kInterleavedRows * at, r, scratch + r * row_bytes + at);
  }
}

// Block `index` of a row, whichever way the rows lie.
template <typename Block>
Block block_of(const Rows* w, int row, int index) {
  Block block;
  const size_t at = index * sizeof block;
  const uint8_t* data = w->data + row * w->row_bytes + at;
  const int first = row / kInterleavedRows * kInterleavedRows;
  if constexpr (requires { Block::kSmall; }) {
    if (w->interleaved && first + kInterleavedRows <= w->n_rows) {
      move_block<Block, false>(w->data + first * w->row_bytes + kInterleavedRows * at, row - first,
                               reinterpret_cast<uint8_t*>(&block));
      return block;
    }
  }
  memcpy(&block, data, sizeof block);
  return block;
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
        const Block block = block_of<Block>(w, r, s / per_block);
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

InterleaveKernel interleave_ref(int format) {
  switch (format) {
#define EDGE_RT_INTERLEAVE(name) \
  case k##name:                  \
    return interleave_rows<Block##name>;
    EDGE_RT_WORD_FORMATS(EDGE_RT_INTERLEAVE)
#undef EDGE_RT_INTERLEAVE
  }
  return nullptr;
}

}  // namespace edge_rt
