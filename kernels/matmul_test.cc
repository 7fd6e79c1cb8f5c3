// Matmuls of every format: scalar and SIMD kernels give the same bits, the scalar ones give the
// right values.
#include <cmath>
#include <vector>

#include "kernels/kernels.h"
#include "tests/native/check.h"
#include "tests/native/matmul_problem.h"

namespace edge_rt {
namespace {

using test::Exact;
using test::kAllFormats;
using test::layout_of;
using test::MatmulProblem;
using test::Random;
using test::same_bits;
using test::tables;

// Against double arithmetic on the dequantized row: each rounding may lose half a unit of the sum
// of magnitudes seen so far.
void check_values(const MatmulProblem& p, const Exact<float>& y) {
  std::vector<float> row(p.n_cols);
  for (int r = 0; r < p.n_rows; ++r) {
    dequantize_row(p.format, p.weights.data() + p.phase + r * row_bytes(p.format, p.n_cols),
                   p.n_cols, row.data());
    for (int t = 0; t < p.n_tokens; ++t) {
      double sum = 0, magnitude = 0;
      for (int j = 0; j < p.n_cols; ++j) {
        const size_t i = t * p.x_stride + j;
        const double x = is_block_format(p.format)
                             ? static_cast<double>(p.codes[i]) * p.scales[i / kBlockColumns]
                             : p.values[i];
        sum += row[j] * x;
        magnitude += std::fabs(row[j] * x);
      }
      if (layout_of(p.format).m != 0) magnitude *= 32;  // d * S and m * M may cancel
      const size_t at = t * p.y_stride + r;
      const double expected = sum + (p.accumulate ? p.y[at] : 0.0);
      CHECK_CASE(
          std::fabs(y[at] - expected) <= (magnitude + std::fabs(expected)) * 1e-6 * 4 + 1e-30,
          "format %d rows %d cols %d: %g is not %g", p.format, p.n_rows, p.n_cols, y[at], expected);
    }
  }
}

void test_matmul() {
  Random random(1);
  for (int round = 0; round < 50; ++round) {
    for (int format : kAllFormats) {
      const int rows = static_cast<int>(random.between(1, 17));
      const int columns = layout_of(format).columns;
      const int cols = static_cast<int>(columns * random.between(1, columns == 1    ? 131
                                                                    : columns == 32 ? 9
                                                                                    : 3));
      const int tokens = static_cast<int>(random.between(1, 9));
      const MatmulProblem p(random, format, rows, cols, tokens);
      const Exact<float> truth = p.run_all(kernels_ref());
      check_values(p, truth);
      for (const Kernels* kernels : tables()) {
        CHECK_CASE(p.run_all(kernels) == truth, "%s format %d rows %d cols %d tokens %d",
                   kernels->name, format, rows, cols, tokens);
        Exact<float> split = p.y.copy();
        for (int r = 0, n; r < rows; r += n) {
          n = static_cast<int>(random.between(1, rows - r));
          for (int t = 0, m; t < tokens; t += m) {
            m = static_cast<int>(random.between(1, tokens - t));
            p.run(kernels, split, r, n, t, m);
          }
        }
        CHECK_CASE(split == truth, "%s format %d rows %d cols %d tokens %d, split", kernels->name,
                   format, rows, cols, tokens);
      }
    }
  }
}

// What formats.h says about the layout, byte by byte.
void test_layout(const MatmulProblem& p, const MatmulProblem& interleaved, const char* name) {
  const test::BlockLayout layout = layout_of(p.format);
  const size_t bytes = row_bytes(p.format, p.n_cols), eight = 8 * layout.bytes;
  const size_t small_bytes = layout.small.bytes * layout.small.n;
  const auto field = [&](size_t at) {  // in the block: how many bytes precede it, and how long
    if (at >= static_cast<size_t>(layout.small.at) && at < layout.small.at + small_bytes) {
      const size_t first = (at - layout.small.at) / layout.small.bytes * layout.small.bytes;
      return std::pair<size_t, size_t>(first, layout.small.bytes);
    }
    const size_t word = layout.small.at == 0 ? at - small_bytes : at;
    return std::pair<size_t, size_t>(small_bytes + word / 4 * 4, 4);
  };
  bool same = true;
  for (int r = 0; r < p.n_rows; ++r) {
    for (size_t i = 0; i < bytes; ++i) {
      size_t to = r * bytes + i;
      if (r < p.n_rows / 8 * 8) {
        const size_t at = i % layout.bytes;
        const auto [before, length] = field(at);
        const size_t start = layout.small.at != 0 || at < small_bytes ? 0 : small_bytes;
        const size_t in_field =
            at >= static_cast<size_t>(layout.small.at) && at < layout.small.at + small_bytes
                ? (at - layout.small.at) % length
                : (at - start) % length;
        to = r / 8 * 8 * bytes + i / layout.bytes * eight + 8 * before + r % 8 * length + in_field;
      }
      same &= p.weights[p.phase + r * bytes + i] == interleaved.weights[p.phase + to];
    }
  }
  CHECK_CASE(same, "%s format %d rows %d cols %d", name, p.format, p.n_rows, p.n_cols);
}

std::vector<const Kernels*> interleaving_tables() {  // of the others rows stay as in the file
  std::vector<const Kernels*> found;
  for (const Kernels* kernels : tables())
    if (kernels->interleave != nullptr) found.push_back(kernels);
  return found;
}

void test_interleaved() {
  Random random(4);
  for (int round = 0; round < 40; ++round) {
    for (int format : kAllFormats) {
      const int columns = layout_of(format).columns;
      const int blocks = static_cast<int>(round % 4 ? random.between(1, 3)
                                                    : random.between(1, 1400 / columns + 2));
      const int rows = static_cast<int>(random.between(1, 41));
      const int tokens = static_cast<int>(round == 7  ? random.between(257, 300)
                                          : round % 5 ? random.between(1, 9)
                                                      : random.between(10, 40));
      const MatmulProblem p(random, format, rows, columns * blocks, tokens);
      for (const Kernels* kernels : interleaving_tables()) {
        const bool can = kernels->interleave(format) != nullptr;
        CHECK_CASE(can == p.can_interleave(), "%s format %d", kernels->name, format);
      }
      const Exact<float> truth = p.run_all(kernels_ref());
      for (const Kernels* kernels : tables())
        CHECK_CASE(p.run_all(kernels) == truth, "%s format %d rows %d blocks %d tokens %d",
                   kernels->name, format, rows, blocks, tokens);
      if (!p.can_interleave()) continue;
      for (const Kernels* kernels : interleaving_tables()) {
        const MatmulProblem q = p.with_interleaved_rows(kernels);
        test_layout(p, q, kernels->name);
        CHECK_CASE(q.run_all(kernels) == truth, "%s format %d rows %d blocks %d tokens %d",
                   kernels->name, format, rows, blocks, tokens);
        Exact<float> split = q.y.copy();
        for (int r = 0, n; r < rows; r += n) {
          n = std::min(8 * static_cast<int>(random.between(1, 3)), rows - r);
          for (int t = 0, m; t < tokens; t += m) {
            m = static_cast<int>(random.between(1, tokens - t));
            q.run(kernels, split, r, n, t, m);
          }
        }
        CHECK_CASE(split == truth, "%s format %d rows %d blocks %d tokens %d, split", kernels->name,
                   format, rows, blocks, tokens);
      }
    }
  }
}

void test_long() {  // what a kernel of several tokens may take in pieces
  Random random(4);
  for (int format : kAllFormats) {
    const int columns = layout_of(format).columns;
    const int rows = static_cast<int>(random.between(1, 17));
    const int cols = static_cast<int>(columns * random.between(1024 / columns, 2600 / columns));
    const int tokens = static_cast<int>(random.between(2, 140));
    const MatmulProblem p(random, format, rows, cols, tokens);
    const Exact<float> truth = p.run_all(kernels_ref());
    for (const Kernels* kernels : tables())
      CHECK_CASE(p.run_all(kernels) == truth, "%s format %d rows %d cols %d tokens %d",
                 kernels->name, format, rows, cols, tokens);
    if (!p.can_interleave()) continue;
    for (const Kernels* kernels : interleaving_tables())
      CHECK_CASE(p.with_interleaved_rows(kernels).run_all(kernels) == truth,
                 "%s format %d rows %d cols %d tokens %d, interleaved", kernels->name, format, rows,
                 cols, tokens);
  }
}

void test_any_bytes() {  // blocks of a hostile file: scales may be infinite or NaN
  Random random(2);
  for (int round = 0; round < 40; ++round) {
    for (int format : kAllFormats) {
      MatmulProblem p(random, format, static_cast<int>(random.between(1, 9)),
                      layout_of(format).columns * 3, static_cast<int>(random.between(1, 5)));
      const bool same = random.chance(0.3);
      const uint8_t byte = static_cast<uint8_t>(random.bits());
      for (size_t i = 0; i < p.weights.size(); ++i)
        p.weights[i] = same ? byte : static_cast<uint8_t>(random.bits());
      std::vector<float> row(p.n_cols);
      dequantize_row(format, p.weights.data() + p.phase, p.n_cols, row.data());
      const Exact<float> truth = p.run_all(kernels_ref());
      for (const Kernels* kernels : tables()) {
        CHECK_CASE(same_bits(p.run_all(kernels), truth), "%s format %d", kernels->name, format);
        if (kernels->interleave != nullptr && p.can_interleave())
          CHECK_CASE(same_bits(p.with_interleaved_rows(kernels).run_all(kernels), truth),
                     "%s format %d interleaved", kernels->name, format);
      }
    }
  }
}

void test_extreme_codes() {  // every product of codes at its largest: no step may saturate
  constexpr uint16_t kOne = 0x3c00;
  constexpr int kExtremes[] = {0x00, 0x7f, 0x80, 0xff};
  for (int format : kAllFormats) {
    if (!is_block_format(format)) continue;
    const test::BlockLayout layout = layout_of(format);
    // Of the sign with which d * S and m * M do not cancel.
    const uint16_t m = format == kQ4_1 || format == kQ5_1 ? kOne : kOne | 0x8000;
    for (int weight = 0; weight < 256; ++weight) {
      for (int8_t even : {-127, 127}) {
        for (int8_t odd : {-127, 127}) {
          Random random(3);
          MatmulProblem p(random, format, layout.scales_bytes ? 8 : 1, layout.columns,
                          1 + weight % 3);
          p.accumulate = false;
          p.set_codes(even, odd);
          std::memset(p.weights.data(), weight, p.weights.size());
          for (int r = 0; r < p.n_rows; ++r) {
            uint8_t* block = p.weights.data() + p.phase + r * layout.bytes;
            std::memset(block + layout.scales, kExtremes[r % 4], layout.scales_bytes);
            test::set_scales(format, block, kOne, m);
          }
          const Exact<float> truth = p.run_all(kernels_ref());
          check_values(p, truth);
          for (const Kernels* kernels : tables()) {
            CHECK_CASE(p.run_all(kernels) == truth, "%s format %d weight %d codes %d %d",
                       kernels->name, format, weight, even, odd);
            if (kernels->interleave != nullptr && p.can_interleave())
              CHECK_CASE(p.with_interleaved_rows(kernels).run_all(kernels) == truth,
                         "%s format %d weight %d codes %d %d, interleaved", kernels->name, format,
                         weight, even, odd);
          }
        }
      }
    }
  }
}

void test_row_bytes() {
  for (int format : kAllFormats) {
    const test::BlockLayout layout = layout_of(format);
    CHECK_CASE(row_bytes(format, 3 * layout.columns) == 3 * layout.bytes, "format %d", format);
    CHECK_CASE(is_block_format(format) == (layout.columns > 1), "format %d", format);
    if (layout.columns > 1) CHECK_CASE(row_bytes(format, layout.columns + 1) == 0, "%d", format);
  }
  for (int format : {-1, 4, 5, 9, 15, 24, 31, 36, 38, 40, 1000}) {
    CHECK_CASE(row_bytes(format, 256) == 0 && !is_block_format(format), "format %d", format);
    for (const Kernels* kernels : tables())
      CHECK_CASE(kernels->matmul(format) == nullptr, "%s format %d", kernels->name, format);
  }
}

}  // namespace
}  // namespace edge_rt

int main() {
  using namespace edge_rt;
  test::test_seed();
  test::say_tables();
  test::section("row bytes", test_row_bytes);
  test::section("matmul", test_matmul);
  test::section("interleaved", test_interleaved);
  test::section("long", test_long);
  test::section("any bytes", test_any_bytes);
  test::section("extreme codes", test_extreme_codes);
  return test::finish("matmul_test");
}
