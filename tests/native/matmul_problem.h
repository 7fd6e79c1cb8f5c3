// Random matmul problems in any format, for the tests of the kernels.
#pragma once

#include <cmath>
#include <cstddef>
#include <vector>

#include "kernels/half.h"
#include "kernels/kernels.h"
#include "tests/native/check.h"
#include "tests/native/kernel_tables.h"

namespace edge_rt::test {

// clang-format off
inline constexpr int kAllFormats[] = {
    kF32, kF16, kBF16,
#define EDGE_RT_ID(name) k##name,
    EDGE_RT_BLOCK_FORMATS(EDGE_RT_ID)
#undef EDGE_RT_ID
};
// clang-format on

// Equal bits, where any NaN equals any NaN: which payload survives an operation is not specified.
inline bool same_bits(const Exact<float>& a, const Exact<float>& b) {
  for (size_t i = 0; i < a.size(); ++i)
    if (bits_of(a[i]) != bits_of(b[i]) && !(std::isnan(a[i]) && std::isnan(b[i]))) return false;
  return a.size() == b.size();
}

struct BlockLayout {
  int columns;
  size_t bytes, d;              // d: where the scale lies
  size_t m;                     // where m or dmin lies, 0 if there is none
  size_t scales, scales_bytes;  // where most multipliers lie, 0 bytes if they have no place
  SmallFields small;            // n is 0: not interleaved
};

template <typename Block>
constexpr size_t offset_of_scale() {
  if constexpr (requires(Block b) { b.exponent; }) {
    return offsetof(Block, exponent);
  } else if constexpr (requires(Block b) { b.d; }) {
    return offsetof(Block, d);
  } else {
    return offsetof(Block, scales);
  }
}

template <typename Block>
constexpr size_t offset_of_min() {
  if constexpr (requires(Block b) { b.m; }) {
    return offsetof(Block, m);
  } else if constexpr (requires(Block b) { b.dmin; }) {
    return offsetof(Block, dmin);
  } else {
    return 0;
  }
}

template <typename Block>
constexpr BlockLayout layout_of() {
  BlockLayout layout = {
      Block::kColumns, sizeof(Block), offset_of_scale<Block>(), offset_of_min<Block>(), 0, 0,
      {0, 0, 0}};
  if constexpr (requires { Block::kSmall; }) layout.small = Block::kSmall;
  if constexpr (requires(Block b) { b.scales; }) {
    layout.scales = offsetof(Block, scales);
    layout.scales_bytes = sizeof(Block::scales);
  }
  return layout;
}

inline BlockLayout layout_of(int format) {
  switch (format) {
#define EDGE_RT_LAYOUT(name) \
  case k##name:              \
    return layout_of<Block##name>();
    EDGE_RT_BLOCK_FORMATS(EDGE_RT_LAYOUT)
#undef EDGE_RT_LAYOUT
  }
  return {1, row_bytes(format, 1), 0, 0, 0, 0, {0, 0, 0}};
}

// Writes d (and m) of one block; MXFP4 gets the power of two below.
inline void set_scales(int format, uint8_t* block, uint16_t d, uint16_t m) {
  const BlockLayout layout = layout_of(format);
  if (format == kMXFP4) {
    const int exponent = std::ilogb(std::fabs(half_to_float(d)) + 1e-8f) + 128;
    block[layout.d] = static_cast<uint8_t>(exponent);
  } else if (format == kIQ1_M) {  // a nibble in each of the four words of scales
    for (int i = 0; i < 4; ++i) {
      uint8_t* top = block + layout.d + 2 * i + 1;
      *top = static_cast<uint8_t>((*top & 15) | (d >> 4 * i & 15) << 4);
    }
  } else {
    std::memcpy(block + layout.d, &d, 2);
  }
  if (layout.m != 0) std::memcpy(block + layout.m, &m, 2);
}

inline uint16_t random_half(Random& random) {  // any finite half; mostly of a weight's size
  if (random.chance(0.9)) return float_to_half(random.normal(0.05f));
  uint16_t h;
  do h = static_cast<uint16_t>(random.bits());
  while ((h & 0x7c00) == 0x7c00);
  return h;
}

inline void fill_weights(Random& random, int format, uint8_t* p, int n_rows, int n_cols) {
  const size_t bytes = row_bytes(format, n_cols) * n_rows;
  if (is_block_format(format)) {
    for (size_t i = 0; i < bytes; ++i) p[i] = static_cast<uint8_t>(random.bits());
    for (size_t i = 0; i < bytes; i += layout_of(format).bytes)
      set_scales(format, p + i, random_half(random), random_half(random));
    return;
  }
  for (size_t i = 0; i < static_cast<size_t>(n_rows) * n_cols; ++i) {
    const float value = random.normal();
    const uint16_t half = random_half(random), brain = static_cast<uint16_t>(bits_of(value) >> 16);
    if (format == kF32) std::memcpy(p + 4 * i, &value, 4);
    if (format == kF16) std::memcpy(p + 2 * i, &half, 2);
    if (format == kBF16) std::memcpy(p + 2 * i, &brain, 2);
  }
}

// One matmul problem; the last token and the last row end where their memory ends.
struct MatmulProblem {
  int format, n_rows, n_cols, n_tokens;
  size_t x_stride, y_stride;
  bool accumulate;
  bool interleaved = false;
  int phase;  // rows need no alignment
  Exact<uint8_t> weights;
  Exact<float> values;
  Exact<int8_t> codes;
  Exact<float> scales;
  Exact<int16_t> sums;
  Exact<float> y;

  static size_t span(int n, size_t stride, int width) { return (n - 1) * stride + width; }

  MatmulProblem(Random& random, int format_, int rows, int cols, int tokens)
      : format(format_),
        n_rows(rows),
        n_cols(cols),
        n_tokens(tokens),
        x_stride(cols + (is_block_format(format) ? 32 : 1) * random.between(0, 2)),
        y_stride(rows + random.between(0, 5)),
        accumulate(random.chance(0.5)),
        phase(static_cast<int>(random.between(0, 3))),
        weights(phase + row_bytes(format, cols) * rows),
        values(span(tokens, x_stride, cols)),
        codes(is_block_format(format) ? values.size() : 0),
        scales(codes.size() / kBlockColumns),
        sums(scales.size() * 2),
        y(span(tokens, y_stride, rows)) {
    fill_weights(random, format, weights.data() + phase, rows, cols);
    for (size_t i = 0; i < values.size(); ++i) values[i] = random.normal();
    for (size_t i = 0; i < y.size(); ++i) y[i] = random.normal();
    if (!is_block_format(format)) return;
    kernels_ref()->quantize(values.data(), static_cast<int>(values.size()), codes.data(),
                            scales.data(), sums.data());
  }

  void set_codes(int8_t even, int8_t odd) {
    for (size_t i = 0; i < codes.size(); ++i) codes[i] = i % 2 ? odd : even;
    for (size_t i = 0; i < sums.size(); ++i) sums[i] = static_cast<int16_t>(8 * (even + odd));
  }

  bool can_interleave() const { return kernels_ref()->interleave(format) != nullptr; }

  // The same problem with interleaved rows.
  MatmulProblem with_interleaved_rows(const Kernels* kernels) const {
    MatmulProblem other(*this);
    const Aligned<uint8_t> scratch = aligned_memory<uint8_t>(matmul_scratch_bytes(n_cols), 64);
    kernels->interleave(format)(other.weights.data() + phase, row_bytes(format, n_cols), n_rows,
                                scratch.get());
    other.interleaved = true;
    return other;
  }

  // Rows [row, row + rows) of tokens [token, token + tokens); whole groups where interleaved.
  void run(const Kernels* kernels, Exact<float>& out, int row, int rows, int token,
           int tokens) const {
    const size_t at = token * x_stride;
    const Rows w = {weights.data() + phase + row * row_bytes(format, n_cols),
                    row_bytes(format, n_cols), rows, n_cols, interleaved};
    Activations x = {values.data() + at, codes.data(), scales.data(), sums.data(), x_stride};
    if (is_block_format(format)) {
      x.codes += at;
      x.scales += at / 32;
      x.sums += at / 16;
    }
    const Output output = {out.data() + token * y_stride + row, y_stride, accumulate};
    const Aligned<uint8_t> scratch = aligned_memory<uint8_t>(matmul_scratch_bytes(n_cols), 64);
    kernels->matmul(format)(&w, &x, tokens, &output, scratch.get());
  }

  Exact<float> run_all(const Kernels* kernels) const {
    Exact<float> out = y.copy();
    run(kernels, out, 0, n_rows, 0, n_tokens);
    return out;
  }
};

}  // namespace edge_rt::test
