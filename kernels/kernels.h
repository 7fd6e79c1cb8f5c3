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
//   attention                   kv_cache.h has the formats. For one query (a token's head):
//                               spans of 256 positions from position 0, each with a peak, a total
//                               and sums (head_dim) of its own, from -inf, 0 and 0. Within a span
//                               tiles of 32 positions, ascending, of which only the positions count
//                               that the query sees; a tile or a span without any is left out:
//                                 s_p = (q . k_p) scale, soft-capped; peak' = max(peak, s_p);
//                                 keep = exp(peak - peak'); e_p = exp(s_p - peak')
//                                 total = fma(total, keep, reduce8(sum of e_p by p % 8))
//                                 sums_d = sums_d keep, then fma(e_p, v_p,d, sums_d), p ascending.
//                               q . k_p is that of a float matmul, for keys in q8_0 that of block
//                               formats, with q quantized as activations are. A value in q8_0 with
//                               the scale d is fma(e_p d, code, sums_d). Spans, ascending, into the
//                               query's own peak, total and sums (-inf, 0, 0 to begin with):
//                                 peak' = max(peak, span's), keep = exp(peak - peak'),
//                                 add = exp(span's - peak'); total = fma(span's, add, total keep)
//                                 sums_d = fma(span's, add, sums_d keep). Result: sums_d / total.
// No result depends on how rows or tokens are split over calls or threads.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "kernels/formats.h"

namespace edge_rt {

// Positions per softmax step, and positions that are reduced on their own: part of the arithmetic.
enum { kAttentionTile = 32, kAttentionSpan = 256 };
// Queries (tokens times heads) of one call: they share each tile of the cache that was widened.
enum { kAttentionQueries = 24 };

// Activations for a matmul, n_tokens rows of n_cols. `codes`, `scales` and `sums` are set for
// quantized weights (32 columns per scale, 16 per sum of codes), `values` for float ones.
struct Activations {
  const float* values;  // (tokens, cols)
  const int8_t* codes;  // (tokens, cols), -127..127
  const float* scales;  // (tokens, cols / 32)
  const int16_t* sums;  // (tokens, cols / 16)
  size_t stride;        // columns from one token to the next, in all four
};

// A run of rows of one weight matrix. Rows need no alignment.
struct Rows {
  const uint8_t* data;  // (n_rows, row_bytes)
  size_t row_bytes;
  int n_rows;
  int n_cols;  // a multiple of the format's kColumns
  // Every eight rows from the first one on are interleaved (formats.h), the n_rows % 8 last ones
  // are not. Else all are as in the file.
  bool interleaved = false;
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

// Interleaves rows in place. REQUIRES: `scratch` as above.
typedef void (*InterleaveKernel)(uint8_t* rows, size_t row_bytes, int n_rows, uint8_t* scratch);

// Queries that read the same KV head. `k` and `v` are its cache (kv_cache.h); the row of position p
// is p % ring.
struct AttentionArgs {
  int kv_format;
  const float* q;  // (n_tokens, n_heads, head_dim)
  float* out;      // likewise; with a span: its (n_heads, head_dim + 2) sums, peak, total
  size_t stride;   // floats from one token to the next, in q and out
  const void *k, *v;
  int n_tokens, n_heads, head_dim;  // n_tokens * n_heads <= kAttentionQueries
  int ring;             // rows: at least all positions seen, or a multiple of kAttentionTile
  int position;         // of the first token: token t sees positions up to position + t,
  int window;           // at most the last `window` of them; 0: all
  const float* scales;  // (n_tokens), usually 1 / sqrt(head_dim)
  float cap;            // scores are soft-capped to ±cap before the softmax; 0: they are not
  int span;             // >= 0: only this span, which holds positions of the one token; -1: all
  uint8_t* scratch;     // attention_scratch_bytes(head_dim), 64-aligned, the caller's thread's
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
  void (*attention)(const struct AttentionArgs* args);
  // out (n_heads, head_dim) of the n_spans spans that attention wrote: `spans` (n_spans, n_heads,
  // head_dim + 2)
  void (*merge_spans)(const float* spans, int n_spans, int n_heads, int head_dim, float* out);
  // One head's keys or values for the cache in q8_0, blocks of 32, the last padded with zeros:
  // scale = half(max|x| / 127), code = round_half_even(x / scale). A block with a NaN or an
  // infinity has the scale NaN. codes (blocks * 32), scales (blocks).
  void (*quantize_kv)(const float* x, int head_dim, int8_t* codes, uint16_t* scales);
  void (*to_half)(const float* x, uint16_t* y, int n);  // rounded to nearest even
  // Turns the first 2 * n_pairs columns of each head (n_heads, head_dim): pairs (i, i + n_pairs) if
  // `halves`, else (2i, 2i + 1). table: n_pairs cosines, then n_pairs sines.
  //   a' = fma(a, cos, -(b sin)), b' = fma(a, sin, b cos)
  void (*rope)(float* heads, int n_heads, int head_dim, const float* table, int n_pairs,
               bool halves);
  // y = y + factor * x
  void (*add)(float* y, const float* x, float factor, int n);
  // Null as a whole or for a format: its matmul takes rows as in the file only.
  InterleaveKernel (*interleave)(int format) = nullptr;
};

// What a thread needs besides: what a matmul of several tokens unpacks at a time, with the tokens'
// sums; or eight rows that are being interleaved.
constexpr size_t kUnpackedBytes = 29 * 1024;
inline size_t matmul_scratch_bytes(size_t n_cols) {
  const size_t eight_rows = kInterleavedRows * ((n_cols + 31) / 32 * sizeof(BlockQ8_0));
  return (eight_rows > kUnpackedBytes ? eight_rows : kUnpackedBytes) + 64;
}

// Queries, two sets of sums, and a widened tile of keys and of values.
inline size_t attention_scratch_bytes(size_t head_dim) {
  return (3 * kAttentionQueries + 2 * kAttentionTile) * ((head_dim + 31) / 32 * 32) * sizeof(float);
}
inline int n_spans(int n_positions) { return (n_positions + kAttentionSpan - 1) / kAttentionSpan; }

// Dequantizes one row of n columns (an embedding row) to float32.
void dequantize_row(int format, const uint8_t* row, int n, float* out);
size_t row_bytes(int format, int n_cols);  // 0: not a format, or not a whole number of blocks
bool is_block_format(int format);          // its matmul reads Activations' codes, not the values

const struct Kernels* kernels_ref();
// NEON needs no more than ARMv8.0; the other two have the instructions for 8-bit dot products and,
// besides, for 8-bit matrices.
constexpr const char* kKernelNames[] = {"ref",  "avx2",         "avx512vnni",
                                        "neon", "neon_dotprod", "neon_i8mm"};
// One of these names, or "auto" for the fastest this CPU runs. Null: not available.
const struct Kernels* kernels_named(const char* name);

}  // namespace edge_rt
