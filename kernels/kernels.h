// The contract of every kernel. One `Kernels` table per ISA; all tables give the same bits.
//
// Canonical arithmetic (design promise 2). Everything is float32, rounded to nearest even, fma only
// where it is written here:
//   matmul, block formats       y = 0; then for each 32 columns, ascending, with the integers
//                                 S = k0 * sum(c_j x_j, j < 16) + k1 * sum(c_j x_j, j >= 16)
//                                 M = n0 * sum(x_j, j < 16) + n1 * sum(x_j, j >= 16)
//                               (formats.h has the weight's c, k, n, d and m; |S| and |M| < 2^24):
//                                 y = fma(d * d_x, (float)S, y)
//                                 y = fma(m * d_x, (float)M, y), only where the format has a m.
//   matmul, float weights       lane[j % 8] = fma(w_j, x_j, lane[j % 8]), columns ascending, then
//                               `reduce8` = ((l0+l4)+(l2+l6)) + ((l1+l5)+(l3+l7)).
//   attention                   positions in tiles of 32 from position 0, also where a window
//                               begins later; online softmax over tiles.
// No result depends on how rows or tokens are split over calls or threads.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "kernels/formats.h"

namespace edge_rt {

enum { kAttentionTile = 32 };  // positions per softmax step, part of the arithmetic

// Activations for a matmul, n_tokens rows of n_cols. `codes`, `scales` and `sums` are set for
// quantized weights (32 columns per scale, 16 per sum of codes), `values` for float ones.
struct Activations {
  const float* values;  // (tokens, cols)
  const int8_t* codes;  // (tokens, cols), -127..127
  const float* scales;  // (tokens, cols / 32)
  const int16_t* sums;  // (tokens, cols / 16)
  size_t stride;        // columns from one token to the next, in all four
};

// A run of rows of one weight matrix in file layout. Rows need no alignment.
struct Rows {
  const uint8_t* data;  // (n_rows, row_bytes)
  size_t row_bytes;
  int n_rows;
  int n_cols;  // a multiple of the format's kColumns
};

// y (tokens, rows): element (t, r) at y[t * stride + r].
struct Output {
  float* y;
  size_t stride;
  bool accumulate;  // y = y + product instead of y = product
};

// REQUIRES: `scratch` has matmul_scratch_bytes(n_cols) bytes, 64-aligned, owned by the caller's
// thread.
typedef void (*MatmulKernel)(const struct Rows* w, const struct Activations* x, int n_tokens,
                             const struct Output* out, uint8_t* scratch);

struct AttentionArgs {
  const float* q;  // (head_dim)
  const void* k;   // (ring, head_dim), half or float; position p is row p % ring
  const void* v;   // (ring, head_dim)
  float* out;      // (head_dim)
  int head_dim;
  int n_positions;  // positions first..n_positions-1 are attended to
  float scale;      // usually 1 / sqrt(head_dim)
  int first;        // where a sliding window begins, else 0
  float cap;        // scores are soft-capped to ±cap before the softmax; 0: they are not
  int ring;         // rows of k and v: at least n_positions, or a multiple of kAttentionTile
};

struct Kernels {
  const char* name;
  MatmulKernel (*matmul)(int format);  // null: not supported
  // codes = round_half_even(x / d) with d = max|x| / 127 over each 32 columns; n a multiple of 32.
  void (*quantize)(const float* x, int n, int8_t* codes, float* scales, int16_t* sums);
  // y = x / sqrt(mean(x^2) + eps) * weight
  void (*rms_norm)(const float* x, const float* weight, int n, float eps, float* y);
  // gate = gate * sigmoid(gate) * up
  void (*silu_gate)(float* gate, const float* up, int n);
  // gate = gelu(gate) * up, the tanh form
  void (*gelu_gate)(float* gate, const float* up, int n);
  // x = cap * tanh(x / cap)
  void (*softcap)(float* x, int n, float cap);
  void (*attention_f16)(const struct AttentionArgs* args);
  void (*attention_f32)(const struct AttentionArgs* args);
  void (*to_half)(const float* x, uint16_t* y, int n);  // rounded to nearest even
};

// Eight transposed rows, which matmul works from when there are several tokens: per 32 columns at
// most the codes and two more vectors of 32 bytes.
constexpr int kTransposedBytes = 8 * 32 + 2 * 32;
inline size_t matmul_scratch_bytes(size_t n_cols) {
  return (n_cols + 31) / 32 * kTransposedBytes + 64;
}

// Dequantizes one row of n columns (an embedding row) to float32.
void dequantize_row(int format, const uint8_t* row, int n, float* out);
size_t row_bytes(int format, int n_cols);  // 0: not a format, or not a whole number of blocks
bool is_block_format(int format);          // its matmul reads Activations' codes, not the values

const struct Kernels* kernels_ref();
const struct Kernels* kernels_avx2();  // null where the build or the CPU has none
// NEON needs no more than ARMv8.0; the other two have the instructions for 8-bit dot products and,
// besides, for 8-bit matrices.
constexpr const char* kKernelNames[] = {"ref", "avx2", "neon", "neon_dotprod", "neon_i8mm"};
// One of these names, or "auto" for the fastest this CPU runs. Null: not available.
const struct Kernels* kernels_named(const char* name);

}  // namespace edge_rt
