// Random step programs as Python's checks let them through, over a small file of any bytes: every
// kind of operation, formats, tiles, residency, KV caches, threads. Either finish() refuses, or all
// ways of running the program (kernels, threads, tiles resident or streamed, pass sizes) give the
// same logits, and nothing is written outside the regions that were handed out.
#include "edge_rt/runtime/runtime.h"

#include <cmath>
#include <optional>
#include <stdexcept>
#include <vector>

#include "tests/fuzz/native/input.h"
#include "tests/native/check.h"
#include "tests/native/matmul_problem.h"
#include "tests/native/temp_file.h"

namespace edge_rt {
namespace {

using fuzz::Input;

constexpr size_t kFileBytes = 96 * 1024, kArenaBytes = 4 << 20, kGap = 64;
constexpr auto kGuard = std::byte{0xa5};
const std::function<bool()> kNeverStop = [] { return false; };

// What a program is, whatever runs it.
struct Matrix {
  int format, n_rows, n_cols, segment;
  uint64_t file_offset;
};
struct Shape {
  int hidden, n_ctx, vocab, n_heads, n_kv_heads, head_dim, n_layers, max_tokens, logit_rows;
  int kv_format;
  bool rope_halves;
  double temperature;
  std::vector<int> windows, kv_positions;
};
struct Norm {
  int op, width;  // the operation that has it
};
struct Program {
  Shape shape;
  std::vector<std::pair<int, bool>> buffers;  // width, quantized
  std::vector<Matrix> matrices;
  std::vector<Vector> vectors;          // arena offsets to be filled in
  std::vector<std::pair<int, Op>> ops;  // segment; vector_offset is an index here
  std::vector<double> frequencies;
  int x = 0, table = 0, logits = 0, embedding_format = 0;
  uint64_t embedding_offset = 0;
  bool breaks_scratch = false;
};

int unit_of(int format) { return is_block_format(format) ? test::layout_of(format).columns : 1; }

class Maker {
 public:
  explicit Maker(Input& in) : in_(in) {}

  Program make() {
    Shape& s = p_.shape;
    s.hidden = in_.flag() ? 256 : 32 * pick(1, 3);
    s.n_heads = pick(1, 4);
    s.n_kv_heads = in_.flag() || s.n_heads % 2 ? s.n_heads : s.n_heads / 2;
    s.head_dim = pick(1, 24);
    s.n_layers = pick(1, 2);
    s.n_ctx = pick(1, 70);
    s.max_tokens = std::min(pick(1, 8), s.n_ctx);
    s.logit_rows = pick(1, s.max_tokens);
    s.vocab = pick(1, 40);
    s.kv_format = pick(0, 2), s.rope_halves = in_.flag();
    s.temperature = in_.flag() ? 0.1 : 0.0;
    for (int layer = 0; layer < s.n_layers; ++layer) {
      s.windows.push_back(in_.flag() ? pick(1, 20) : 0);
      const int ring = (s.windows.back() + s.max_tokens + 30) / 32 * 32;
      s.kv_positions.push_back(s.windows.back() != 0 && in_.flag() ? std::min(ring, s.n_ctx)
                                                                   : s.n_ctx);
      if (in_.between(0, 30) == 0) s.kv_positions.back() = pick(1, s.n_ctx);  // perhaps too few
    }
    p_.x = buffer(s.hidden);
    work_ = {buffer(s.hidden), buffer(s.hidden)};
    const int n_pairs = pick(0, s.head_dim / 2);
    p_.table = buffer(std::max(1, 2 * n_pairs));
    for (int i = 0; i < n_pairs; ++i) p_.frequencies.push_back(in_.take<uint16_t>() / 1000.0);
    p_.embedding_format = a_format(s.hidden);
    p_.embedding_offset = somewhere(row_bytes(p_.embedding_format, s.hidden) * s.vocab);
    emit(0, OpKind::kRopeTables);
    // Nothing is read before this pass wrote it: what an earlier one left depends on its tokens.
    for (const int b : work_) norm(0, p_.x, b);
    for (int n = pick(0, 14); n > 0; --n) operation();
    // The head, whose first step must be a norm.
    if (in_.between(0, 30) != 0) norm(1, p_.x, work_[0]);
    p_.logits = buffer(s.vocab);
    matmul(1, work_[0], {p_.logits});
    if (in_.flag()) emit(1, OpKind::kSoftcap, -1, -1, p_.logits).value = in_.take<float>();
    p_.breaks_scratch = in_.between(0, 40) == 0;
    return std::move(p_);
  }

 private:
  int pick(int low, int high) { return static_cast<int>(in_.between(low, high)); }
  int buffer(int width, bool quantized = false) {
    p_.buffers.push_back({width, quantized});
    return static_cast<int>(p_.buffers.size()) - 1;
  }
  int width(int b) const { return p_.buffers[static_cast<size_t>(b)].first; }
  uint64_t somewhere(size_t bytes) {
    return static_cast<uint64_t>(in_.between(0, static_cast<int64_t>(kFileBytes - bytes)));
  }
  int a_format(int n_cols) {
    const int format = test::kAllFormats[pick(0, std::size(test::kAllFormats) - 1)];
    return n_cols % unit_of(format) == 0 ? format : kF16;
  }
  Op& emit(int segment, OpKind kind, int src = -1, int src2 = -1, int dst = -1) {
    Op op;
    op.kind = kind, op.src = src, op.src2 = src2, op.dst = dst;
    p_.ops.push_back({segment, std::move(op)});
    return p_.ops.back().second;
  }
  int64_t vector(int n) {
    const int formats[] = {kF32, kF16, kBF16};
    const int format = formats[pick(0, 2)];
    p_.vectors.push_back({somewhere(row_bytes(format, n)), format, n, 0, in_.flag() ? 1.0f : 0.0f});
    return static_cast<int64_t>(p_.vectors.size()) - 1;
  }
  void norm(int segment, int src, int dst) {
    int n = width(src);
    if (in_.flag() && n % 8 == 0) n = 8;
    const int64_t weight = vector(n);
    Op& op = emit(segment, OpKind::kRmsNorm, src, -1, dst);
    op.vector_offset = weight, op.width = n, op.value = in_.flag() ? 1e-5f : in_.take<float>();
  }
  // dst = or += src times matrices; what is quantized gets its int8 form first.
  void matmul(int segment, int src, std::vector<int> dsts) {
    std::vector<MatmulPart> parts;
    int packed = -1;
    for (const int dst : dsts) {
      const int n_cols = width(src), n_rows = width(dst);
      int format = a_format(n_cols);
      if (row_bytes(format, n_cols) * n_rows > kFileBytes / 2) format = kQ4_0;
      const bool quantized = is_block_format(format);
      if (quantized && packed < 0) {
        packed = buffer(n_cols, true);
        emit(segment, OpKind::kQuantize, src, -1, packed);
      }
      const bool wrong = in_.between(0, 60) == 0;  // finish() must see it
      p_.matrices.push_back(
          {format, n_rows, n_cols, segment, somewhere(row_bytes(format, n_cols) * n_rows)});
      parts.push_back({static_cast<int>(p_.matrices.size()) - 1, quantized && !wrong ? packed : src,
                       dst, accumulates(dst) && in_.flag()});
    }
    emit(segment, OpKind::kMatmul).parts = std::move(parts);
  }
  bool accumulates(int dst) const { return dst == p_.x || dst == work_[0] || dst == work_[1]; }
  int any_work() { return work_[static_cast<size_t>(pick(0, static_cast<int>(work_.size()) - 1))]; }
  int another(int not_this) {
    int b = any_work();
    if (b == not_this) b = b == work_[0] ? work_[1] : work_[0];
    return b;
  }

  void operation() {
    const Shape& s = p_.shape;
    const int dst = any_work();
    switch (pick(0, 10)) {
      case 0:
        return norm(0, in_.flag() ? p_.x : dst, dst);
      case 1: {  // one or two products of one input, into buffers of their own
        const int n_rows = 32 * pick(1, 4);
        std::vector<int> dsts = {in_.flag() ? p_.x : buffer(n_rows)};
        if (in_.flag()) dsts.push_back(buffer(pick(1, 50)));
        return matmul(0, dst, dsts);
      }
      case 2: {
        const int64_t bias = vector(width(dst));
        emit(0, OpKind::kAddBias, -1, -1, dst).vector_offset = bias;
        return;
      }
      case 3:
        emit(0, OpKind::kAdd, dst, -1, p_.x).value = in_.flag() ? 1.0f : in_.take<float>();
        return;
      case 4:
        emit(0, OpKind::kScale, -1, -1, dst).value = in_.take<float>();
        return;
      case 5:
        emit(0, OpKind::kSoftcap, -1, -1, dst).value = in_.flag() ? 30.0f : in_.take<float>();
        return;
      case 6:
      case 7:
        emit(0, in_.flag() ? OpKind::kSiluGate : OpKind::kGeluGate, another(dst), -1, dst);
        return;
      default:  // each layer's cache has one writer
        if (next_layer_ < s.n_layers) attention(next_layer_++, dst);
    }
  }
  void attention(int layer, int src) {
    const Shape& s = p_.shape;
    const int n_q = s.n_heads * s.head_dim, n_kv = s.n_kv_heads * s.head_dim;
    const int q = buffer(n_q), k = buffer(n_kv), v = buffer(n_kv), out = buffer(n_q);
    matmul(0, src, {q, k, v});
    for (const int b : {q, k})
      if (!p_.frequencies.empty()) emit(0, OpKind::kRope, p_.table, -1, b);
    emit(0, OpKind::kStoreKv, k, v).layer = layer;
    Op& op = emit(0, OpKind::kAttention, q, -1, out);
    op.layer = layer, op.value = in_.flag() ? 0.25f : in_.take<float>();
    op.window = s.windows[static_cast<size_t>(layer)], op.cap = in_.flag() ? 20.0f : 0.0f;
    matmul(0, out, {src});
  }

  Input& in_;
  Program p_;
  std::vector<int> work_;
  int next_layer_ = 0;
};

// One way to run a program.
struct Way {
  const Kernels* kernels;
  int n_threads;
  int residency;  // 0: all streams, 1: nothing does, else the input decides for each tile
  int chunk;      // tokens per pass
};

class Machine {
 public:
  Machine(Input& in, const Program& p, const File& file, const Way& way)
      : in_(in),
        p_(p),
        file_(file),
        way_(way),
        arena_(kArenaBytes),
        runtime_(arena_, file, way.kernels, way.n_threads, "pread", p.shape.max_tokens) {
    std::fill_n(arena_.data(), kArenaBytes, kGuard);
    const Shape& s = p.shape;
    const int n_tokens = s.max_tokens;
    for (const auto& [width, quantized] : p.buffers) {
      const size_t n = static_cast<size_t>(n_tokens) * width;
      runtime_.add_buffer({take(quantized ? n + n / kBlockColumns * 8 : n * 4), width, quantized});
    }
    std::vector<int64_t> vectors;
    for (Vector vector : p.vectors) {
      vector.arena_offset = take(vector.n * sizeof(float));
      vectors.push_back(vector.arena_offset);
      runtime_.add_vector(vector);
    }
    runtime_.add_rope_table({p.table, p.frequencies, 1.1});
    for (const Matrix& matrix : p.matrices) add(matrix);
    for (const auto& [segment, op] : p.ops) {
      Op copy = op;
      if (copy.vector_offset >= 0)
        copy.vector_offset = vectors[static_cast<size_t>(copy.vector_offset)];
      runtime_.add_op(segment, std::move(copy));
    }
    size_t kv = 0;
    for (const int n : s.kv_positions)
      kv += size_t{2} * s.n_kv_heads * kv_head_bytes(s.kv_format, s.head_dim, n);
    const int64_t kv_offset = take(kv);
    std::fill_n(arena_.data() + kv_offset, kv, std::byte{0});
    runtime_.set_attention({s.n_heads, s.n_kv_heads, s.head_dim, s.n_ctx, s.kv_format,
                            s.rope_halves, kv_offset,
                            take(attention_spans_bytes(s.n_heads, s.head_dim, s.n_ctx)),
                            s.kv_positions, s.temperature, 4});
    size_t widest = 1;
    for (const Matrix& m : p.matrices) widest = std::max(widest, static_cast<size_t>(m.n_cols));
    size_t scratch = std::max((matmul_scratch_bytes(widest) + 63) / 64 * 64,
                              attention_scratch_bytes(s.head_dim));
    if (p.breaks_scratch) scratch = 64;
    runtime_.set_scratch(take(scratch * way.n_threads), scratch);
    const size_t row = row_bytes(p.embedding_format, s.hidden);
    const size_t staging = (row + 4095) / 4096 * 4096 + 4096;
    runtime_.set_embedding({p.embedding_offset, p.embedding_format, s.vocab, s.hidden, p.x,
                            take(staging * n_tokens), staging});
    runtime_.set_logits(p.logits, s.logit_rows);
    const size_t ring = largest_ * static_cast<size_t>(in.between(1, 4));
    const int64_t ring_offset = take(ring);
    runtime_.finish(ring_offset, ring);
  }

  // The logits of every position, or of some where a pass has only its last.
  std::vector<float> logits(const std::vector<int32_t>& tokens) {
    REQUIRE(runtime_.load(runs_, [](uint64_t, uint64_t) { return false; }));
    const Shape& s = p_.shape;
    std::vector<float> all;
    const int n = static_cast<int>(tokens.size());
    for (int at = 0, m; at < n; at += m) {
      m = std::min(way_.chunk, n - at);
      plan(runtime_, {0, 1});
      REQUIRE(runtime_.run(tokens.data() + at, m, at, m == 1, kNeverStop));
      if (m > 1) {
        for (int first = 0, rows; first < m; first += rows) {
          rows = std::min(s.logit_rows, m - first);
          if (first > 0) plan(runtime_, {1});
          REQUIRE(runtime_.run_head(first, rows, kNeverStop));
          keep(&all, rows);
        }
      } else {
        keep(&all, 1);
      }
    }
    for (const auto& [start, end] : gaps_)
      for (size_t i = start; i < end; ++i) REQUIRE(arena_.data()[i] == kGuard);
    return all;
  }

 private:
  // Regions lie apart, so that writing behind one shows.
  int64_t take(size_t bytes) {
    const size_t start = (next_ + kGap + 4095) / 4096 * 4096;
    gaps_.push_back({next_, start});
    next_ = start + bytes;
    if (next_ + kGap > kArenaBytes) throw std::bad_alloc();
    return static_cast<int64_t>(start);
  }
  void add(const Matrix& m) {
    const size_t bytes = row_bytes(m.format, m.n_cols);
    Weight weight = {m.format, m.n_rows, m.n_cols, m.segment, {}};
    std::vector<StreamBlock> streamed;
    for (int r = 0, n; r < m.n_rows; r += n) {
      n = static_cast<int>(std::min<int64_t>(m.n_rows - r, in_.between(1, 40)));
      const uint64_t offset = m.file_offset + r * bytes;
      const AlignedExtent extent = file_.cover(offset, n * bytes);
      const bool resident = way_.residency < 2 ? way_.residency == 1 : in_.flag();
      if (resident) {
        const int64_t at = take(extent.length) + static_cast<int64_t>(extent.lead);
        runs_.push_back({offset, n * bytes, at});
        weight.tiles.push_back({r, n, at, -1});
      } else {
        streamed.push_back({offset, n * bytes});
        largest_ = std::max(largest_, extent.length);
        weight.tiles.push_back({r, n, -1, -1});
      }
    }
    runtime_.add_weight(std::move(weight), streamed);
  }
  void keep(std::vector<float>* all, int rows) {
    for (int r = 0; r < rows; ++r) {
      const float* row = runtime_.logits(r);
      all->insert(all->end(), row, row + p_.shape.vocab);
    }
  }
  static void plan(Runtime& runtime, const std::vector<int>& segments) {
    REQUIRE(runtime.plan(segments, kNeverStop));
  }

  Input& in_;
  const Program& p_;
  const File& file_;
  const Way way_;
  Arena arena_;
  Runtime runtime_;
  size_t next_ = 0, largest_ = 4096;
  std::vector<std::pair<size_t, size_t>> gaps_;
  std::vector<ResidentRun> runs_;
};

const test::TempFile& the_file() {
  // Values of a model's size and odd ones side by side: floats of every kind and any codes.
  static const test::TempFile file(test::test_content(kFileBytes));
  return file;
}

bool same(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i)
    if (bits_of(a[i]) != bits_of(b[i]) && !(std::isnan(a[i]) && std::isnan(b[i]))) return false;
  return true;
}

void run(Input& in) {
  const Program program = Maker(in).make();
  static const File file(the_file().path(), /*direct=*/false);
  std::vector<int32_t> tokens(
      static_cast<size_t>(in.between(1, std::min(program.shape.n_ctx, 20))));
  for (int32_t& token : tokens)
    token = static_cast<int32_t>(in.between(0, program.shape.vocab - 1));
  std::optional<std::vector<float>> truth;
  bool refused = false;
  const Kernels* simd = kernels_named("auto");
  const int most = program.shape.max_tokens;
  const Way ways[] = {{kernels_ref(), 1, 1, 1},
                      {simd, static_cast<int>(in.between(1, 3)), static_cast<int>(in.between(0, 2)),
                       static_cast<int>(in.between(1, most))}};
  for (const Way& way : ways) {
    try {
      Machine machine(in, program, file, way);
      const std::vector<float> logits = machine.logits(tokens);
      REQUIRE(!truth || same(*truth, logits));
      REQUIRE(!refused);
      truth = logits;
    } catch (const std::invalid_argument&) {
      REQUIRE(!truth);
      refused = true;
    } catch (const std::bad_alloc&) {
      return;  // more than this small arena holds
    }
  }
}

}  // namespace
}  // namespace edge_rt

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  edge_rt::fuzz::Input in(data, size);
  edge_rt::run(in);
  return 0;
}
