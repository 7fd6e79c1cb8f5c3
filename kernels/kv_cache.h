// Where the cache of one KV head has a position's key and value. Everything is static: the files of
// an ISA include it.
//
// f16, f32: (rows, head_dim). q8_0: tiles of 32 rows, each 34 bytes per row and 32 columns, first
// the int8 codes (columns padded to a multiple of 32 with zeros), then the half scales (column
// block, row). The codes of values are (row, column). Those of keys are interleaved so that one
// load has the same four columns of eight rows: (8 rows, 4 columns) blocks, (row / 8, column / 4).
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "kernels/kernels.h"

namespace edge_rt {

enum KvFormat { kKvF16, kKvF32, kKvQ8_0 };

static inline size_t padded_columns(int head_dim) { return ((size_t)head_dim + 31) / 32 * 32; }

static inline size_t kv_tile_bytes(int format, int head_dim) {
  if (format == kKvQ8_0) return 34 * padded_columns(head_dim);
  return (size_t)kAttentionTile * (size_t)head_dim * (format == kKvF16 ? 2 : 4);
}

// Bytes of the keys, or of the values, of `rows` positions; q8_0 has whole tiles.
static inline size_t kv_head_bytes(int format, int head_dim, size_t rows) {
  if (format == kKvQ8_0)
    return (rows + kAttentionTile - 1) / kAttentionTile * kv_tile_bytes(format, head_dim);
  return rows * (size_t)head_dim * (format == kKvF16 ? 2 : 4);
}

// `row` is the first of a tile.
static inline const uint8_t* kv_tile(int format, const void* head, int head_dim, int row) {
  return (const uint8_t*)head + (size_t)(row / kAttentionTile) * kv_tile_bytes(format, head_dim);
}

// Within a tile of q8_0: row 0..31
static inline size_t key_code(int head_dim, int row, size_t column) {
  const size_t words = padded_columns(head_dim) / 4;
  return ((size_t)(row / 8) * words + column / 4) * 32 + (size_t)(row % 8) * 4 + column % 4;
}

static inline size_t value_code(int head_dim, int row, size_t column) {
  return (size_t)row * padded_columns(head_dim) + column;
}

static inline size_t kv_scale(int head_dim, int row, size_t block) {
  return kAttentionTile * padded_columns(head_dim) + (block * kAttentionTile + (size_t)row) * 2;
}

// Writes one head's key (is_key) or value (head_dim) at `row`.
void store_kv(const struct Kernels* kernels, int format, bool is_key, const float* x, int head_dim,
              void* head, int row);
// "f16", "f32" or "q8_0"; -1: not a format
int kv_format_named(const char* name);

}  // namespace edge_rt
