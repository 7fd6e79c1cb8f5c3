// A random two-layer model in a file, the step program that runs it, and the same sums in double.
// Layer 1 has what only some architectures have: a window, soft caps, norms of q, of what a layer
// adds, a GELU gate, attention that grows with the position. Its logits are capped and scaled.
#pragma once

#include <cmath>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "edge_rt/runtime/runtime.h"
#include "flash_io/faults.h"
#include "kernels/half.h"
#include "tests/native/check.h"
#include "tests/native/temp_file.h"

namespace edge_rt::test {

constexpr int kLayers = 2, kHidden = 64, kHeads = 4, kKvHeads = 2, kHeadDim = 16, kFfn = 96,
              kVocab = 160, kContext = 300;  // two spans of attention
constexpr float kEps = 1e-5f;
constexpr int kWindow = 9, kTemperatureLength = 8;
constexpr int kRing = 32;  // positions of layer 1's cache: a window, a pass, whole tiles
constexpr float kScoreCap = 3.0f, kLogitCap = 6.0f, kAdded = 0.7f, kEmbeddingScale = 1.3f;
constexpr double kTemperature = 0.3, kMagnitude = 1.1;

inline bool is_special(int layer) { return layer == 1; }

struct TinyWeight {
  int n_rows, n_cols, segment;
  uint64_t offset = 0;
};

struct TinyVector {
  std::vector<float> values;  // as they are used
  int format;
  uint64_t file_offset;
  float offset;
};

struct TinyModel {
  int format;
  bool rope_halves;
  std::vector<double> frequencies;
  std::map<std::string, TinyWeight> weights;
  std::map<std::string, TinyVector> vectors;  // norms and a bias
  uint64_t embedding_offset = 0;
  std::vector<uint8_t> content;

  TinyModel(uint64_t salt, int format_) : format(format_) {
    Random random(salt);
    rope_halves = random.chance(0.5);
    for (int i = 0; i < kHeadDim / 2; ++i)
      frequencies.push_back(std::pow(10000.0, -2.0 * i / kHeadDim));
    content.resize(random.between(1, 5000), 0xee);
    embedding_offset = content.size();
    append(random, kF32, kVocab, kHidden, 1.0f);
    for (int l = 0; l < kLayers; ++l) {
      const std::string p = std::to_string(l);
      add(random, p + "q", kHidden, kHidden, 0);
      add(random, p + "k", kKvHeads * kHeadDim, kHidden, 0);
      add(random, p + "v", kKvHeads * kHeadDim, kHidden, 0);
      add(random, p + "o", kHidden, kHidden, 0);
      add(random, p + "gate", kFfn, kHidden, 0);
      add(random, p + "up", kFfn, kHidden, 0);
      add(random, p + "down", kHidden, kFfn, 0);
      for (const char* name : {"norm1", "norm2", "bias", "post"})
        add_vector(random, p + name, kHidden);
      add_vector(random, p + "q_norm", kHeadDim);
    }
    add_vector(random, "norm", kHidden);
    add(random, "head", kVocab, kHidden, 1);
  }

  std::vector<double> matrix(const std::string& name) const {
    const TinyWeight& w = weights.at(name);
    std::vector<float> row(w.n_cols);
    std::vector<double> m;
    for (int r = 0; r < w.n_rows; ++r) {
      dequantize_row(format, content.data() + w.offset + r * row_bytes(format, w.n_cols), w.n_cols,
                     row.data());
      m.insert(m.end(), row.begin(), row.end());
    }
    return m;
  }

 private:
  void add(Random& random, const std::string& name, int rows, int cols, int segment) {
    content.resize(content.size() + random.between(0, 700), 0xee);
    weights[name] = {rows, cols, segment, content.size()};
    append(random, format, rows, cols, 0.2f);
  }
  void add_vector(Random& random, const std::string& name, int n) {
    const int formats[] = {kF32, kF16, kBF16};
    TinyVector& vector = vectors[name];
    vector.format = formats[random.between(0, 2)];
    vector.offset = random.chance(0.5) ? 1.0f : 0.0f;
    const size_t element = row_bytes(vector.format, 1);
    content.resize(content.size() + random.between(0, 700), 0xee);
    vector.file_offset = content.size();
    content.resize(content.size() + n * element);
    for (int i = 0; i < n; ++i) {
      const float value = 1.0f - vector.offset + random.normal(0.2f);
      uint8_t* p = &content[vector.file_offset + i * element];
      const uint16_t half = vector.format == kF16 ? float_to_half(value)
                                                  : static_cast<uint16_t>(bits_of(value) >> 16);
      if (vector.format == kF32) {
        std::memcpy(p, &value, 4);
      } else {
        std::memcpy(p, &half, 2);
      }
      const float stored = vector.format == kF32   ? value
                           : vector.format == kF16 ? half_to_float(half)
                                                   : bf16_to_float(half);
      vector.values.push_back(stored + vector.offset);
    }
  }
  void append(Random& random, int as, int rows, int cols, float deviation) {
    const size_t at = content.size();
    content.resize(at + row_bytes(as, cols) * rows);
    for (size_t i = at; i < content.size();) {
      if (as == kF32) {
        const float value = random.normal(deviation);
        std::memcpy(&content[i], &value, 4);
        i += 4;
      } else {
        BlockQ4_0 block;
        block.d = float_to_half(random.normal(deviation / 5));
        for (uint8_t& code : block.codes) code = static_cast<uint8_t>(random.bits());
        std::memcpy(&content[i], &block, sizeof block);
        i += sizeof block;
      }
    }
  }
};

// Logits of every token in double arithmetic, for float weights and a float KV cache.
inline std::vector<double> tiny_logits(const TinyModel& m, const std::vector<int32_t>& tokens) {
  using Vector = std::vector<double>;
  const auto product = [&](const std::string& name, const Vector& x) {
    const Vector w = m.matrix(name);
    Vector y(w.size() / x.size());
    for (size_t r = 0; r < y.size(); ++r)
      for (size_t j = 0; j < x.size(); ++j) y[r] += w[r * x.size() + j] * x[j];
    return y;
  };
  const auto norm = [&](const std::string& name, const Vector& x) {
    double squares = 0;
    for (double value : x) squares += value * value;
    Vector y = x;
    for (size_t i = 0; i < y.size(); ++i)
      y[i] *= m.vectors.at(name).values[i] / std::sqrt(squares / x.size() + kEps);
    return y;
  };
  const auto softcap = [](double x, double cap) { return cap * std::tanh(x / cap); };
  const auto rope = [&](Vector& x, size_t position) {
    constexpr int kPairs = kHeadDim / 2;
    for (size_t head = 0; head < x.size(); head += kHeadDim) {
      for (int i = 0; i < kPairs; ++i) {
        double& a = x[head + (m.rope_halves ? i : 2 * i)];
        double& b = x[head + (m.rope_halves ? i + kPairs : 2 * i + 1)];
        const double c = kMagnitude * std::cos(position * m.frequencies[i]);
        const double s = kMagnitude * std::sin(position * m.frequencies[i]);
        const double turned = a * c - b * s;
        b = a * s + b * c;
        a = turned;
      }
    }
  };
  std::vector<Vector> keys[kLayers], values[kLayers];
  Vector logits;
  for (size_t t = 0; t < tokens.size(); ++t) {
    Vector x(kHidden);
    for (int i = 0; i < kHidden; ++i)
      x[i] = kEmbeddingScale *
             load_f32(&m.content[m.embedding_offset + (tokens[t] * kHidden + i) * 4]);
    const double growth = 1 + kTemperature * std::log(1 + t / kTemperatureLength);
    for (int l = 0; l < kLayers; ++l) {
      const std::string p = std::to_string(l);
      Vector normed = norm(p + "norm1", x);
      Vector q = product(p + "q", normed), k = product(p + "k", normed);
      for (int i = 0; i < kHidden; ++i) q[i] += m.vectors.at(p + "bias").values[i];
      for (int h = 0; is_special(l) && h < kHeads; ++h) {
        const auto head = q.begin() + h * kHeadDim;
        const Vector y = norm(p + "q_norm", Vector(head, head + kHeadDim));
        std::copy(y.begin(), y.end(), head);
      }
      rope(q, t);
      rope(k, t);
      keys[l].push_back(k);
      values[l].push_back(product(p + "v", normed));
      Vector mixed(kHidden);
      for (int h = 0; h < kHeads; ++h) {
        const int kv = h / (kHeads / kKvHeads) * kHeadDim;
        Vector e(t + 1);
        double total = 0;
        const size_t first = is_special(l) && t >= kWindow ? t + 1 - kWindow : 0;
        for (size_t s = first; s <= t; ++s) {
          for (int d = 0; d < kHeadDim; ++d) e[s] += q[h * kHeadDim + d] * keys[l][s][kv + d];
          e[s] *= growth / std::sqrt(kHeadDim);
          total += e[s] = std::exp(is_special(l) ? softcap(e[s], kScoreCap) : e[s]);
        }
        for (size_t s = first; s <= t; ++s)
          for (int d = 0; d < kHeadDim; ++d)
            mixed[h * kHeadDim + d] += e[s] / total * values[l][s][kv + d];
      }
      Vector attended = product(p + "o", mixed);
      if (is_special(l)) {
        attended = norm(p + "post", attended);
        for (double& value : attended) value *= kAdded;
      }
      for (int i = 0; i < kHidden; ++i) x[i] += attended[i];
      normed = norm(p + "norm2", x);
      Vector gate = product(p + "gate", normed);
      const Vector up = product(p + "up", normed);
      for (int i = 0; i < kFfn; ++i) {
        const double g = gate[i], u = std::sqrt(2 / std::acos(-1.0)) * (g + 0.044715 * g * g * g);
        gate[i] = up[i] * (is_special(l) ? g / 2 * (1 + std::tanh(u)) : g / (1 + std::exp(-g)));
      }
      const Vector fed = product(p + "down", gate);
      for (int i = 0; i < kHidden; ++i) x[i] += fed[i];
    }
    Vector row = product("head", norm("norm", x));
    for (double& value : row) value = softcap(value / 2, kLogitCap);
    logits.insert(logits.end(), row.begin(), row.end());
  }
  return logits;
}

enum class Residency { kAll, kNone, kAlternating };

struct TinySetup {
  const Kernels* kernels = kernels_ref();
  Residency residency = Residency::kNone;
  int n_threads = 1, chunk = 4;
  int ring_units = 1;  // times the largest block
  int kv_format = kKvF32;
  bool direct = true;
  const char* io = "auto";
  int ring_rows = kRing;  // of layer 1's cache
  bool unpacked = false;  // quantized weights read floats: refused
  int n_slow = 0;  // matmuls without effect, so that a pass takes long enough to be cancelled
  uint64_t salt = 0;
  size_t trace_bytes = 0;
};

// One Runtime over a model's file. Buffers, tiles and the ring are carved from its arena.
class TinyRuntime {
 public:
  TinyRuntime(const TinyModel& model, const std::string& path, const TinySetup& setup)
      : model_(model),
        setup_(setup),
        random_(setup.salt),
        arena_(16 << 20),
        file_(path, setup.direct),
        runtime_(arena_, file_, setup.kernels, setup.n_threads, setup.io, setup.chunk) {
    const bool quantized = model.format != kF32 && !setup.unpacked;
    x_ = buffer(kHidden);
    const int normed = buffer(kHidden), q = buffer(kHidden), k = buffer(kKvHeads * kHeadDim);
    const int v = buffer(kKvHeads * kHeadDim), mixed = buffer(kHidden), gate = buffer(kFfn);
    const int up = buffer(kFfn), table = buffer(kHeadDim), logits = buffer(kVocab);
    const int normed8 = quantized ? buffer(kHidden, true) : normed;
    const int mixed8 = quantized ? buffer(kHidden, true) : mixed;
    const int gate8 = quantized ? buffer(kFfn, true) : gate;
    const auto quantize = [&](int segment, int src, int dst) {
      if (quantized) runtime_.add_op(segment, op(OpKind::kQuantize, src, -1, dst));
    };
    runtime_.set_attention({kHeads,
                            kKvHeads,
                            kHeadDim,
                            kContext,
                            setup.kv_format,
                            model.rope_halves,
                            take(kLayers * kKvHeads * 2 *
                                 std::max(kv_head_bytes(kKvF32, kHeadDim, kContext),
                                          kv_head_bytes(kKvQ8_0, kHeadDim, kContext))),
                            take(attention_spans_bytes(kHeads, kHeadDim, kContext)),
                            {kContext, setup.ring_rows},
                            kTemperature,
                            kTemperatureLength});
    runtime_.add_rope_table({table, model.frequencies, kMagnitude});
    runtime_.add_op(0, op(OpKind::kRopeTables));
    runtime_.add_op(0, op(OpKind::kScale, -1, -1, x_, kEmbeddingScale));
    if (setup.n_slow > 0) {
      const int idle = buffer(kFfn);
      const int slow = weight("0gate", Residency::kAll);
      for (int i = 0; i < setup.n_slow; ++i) matmul(0, {{slow, normed8, idle, false}});
    }
    for (int l = 0; l < kLayers; ++l) {
      const std::string p = std::to_string(l);
      normalize(0, p + "norm1", x_, normed);
      quantize(0, normed, normed8);
      matmul(0, {{weight(p + "q"), normed8, q, false},
                 {weight(p + "k"), normed8, k, false},
                 {weight(p + "v"), normed8, v, false}});
      Op bias = op(OpKind::kAddBias, -1, -1, q);
      bias.vector_offset = vector(p + "bias");
      runtime_.add_op(0, std::move(bias));
      if (is_special(l)) normalize(0, p + "q_norm", q, q);
      runtime_.add_op(0, op(OpKind::kRope, table, -1, q));
      runtime_.add_op(0, op(OpKind::kRope, table, -1, k));
      Op store = op(OpKind::kStoreKv, k, v);
      Op attention = op(OpKind::kAttention, q, -1, mixed);
      store.layer = attention.layer = l;
      attention.value = 1.0f / std::sqrt(static_cast<float>(kHeadDim));
      if (is_special(l)) attention.window = kWindow, attention.cap = kScoreCap;
      runtime_.add_op(0, std::move(store));
      runtime_.add_op(0, std::move(attention));
      quantize(0, mixed, mixed8);
      if (is_special(l)) {
        matmul(0, {{weight(p + "o"), mixed8, normed, false}});
        normalize(0, p + "post", normed, normed);
        runtime_.add_op(0, op(OpKind::kAdd, normed, -1, x_, kAdded));
      } else {
        matmul(0, {{weight(p + "o"), mixed8, x_, true}});
      }
      normalize(0, p + "norm2", x_, normed);
      quantize(0, normed, normed8);
      matmul(0,
             {{weight(p + "gate"), normed8, gate, false}, {weight(p + "up"), normed8, up, false}});
      runtime_.add_op(0, op(is_special(l) ? OpKind::kGeluGate : OpKind::kSiluGate, up, -1, gate));
      quantize(0, gate, gate8);
      matmul(0, {{weight(p + "down"), gate8, x_, true}});
    }
    normalize(1, "norm", x_, normed);
    quantize(1, normed, normed8);
    matmul(1, {{weight("head"), normed8, logits, false}});
    runtime_.add_op(1, op(OpKind::kScale, -1, -1, logits, 0.5f));
    runtime_.add_op(1, op(OpKind::kSoftcap, -1, -1, logits, kLogitCap));
    const size_t scratch = std::max(matmul_scratch_bytes(kFfn), attention_scratch_bytes(kHeadDim));
    runtime_.set_scratch(take(scratch * setup.n_threads), scratch);
    const AlignedExtent row = file_.cover(file_.alignment() - 1, kHidden * 4);
    runtime_.set_embedding({model.embedding_offset, kF32, kVocab, kHidden, x_,
                            take(row.length * setup.chunk), row.length});
    runtime_.set_logits(logits, setup.chunk);
    if (setup.trace_bytes > 0) runtime_.set_trace(take(setup.trace_bytes), setup.trace_bytes);
    const size_t ring = largest_ * setup.ring_units;
    runtime_.finish(take(ring), ring);
  }

  Runtime& runtime() { return runtime_; }
  File& file() { return file_; }
  bool load(const std::function<bool(uint64_t, uint64_t)>& progress) {
    return runtime_.load(runs_, progress);
  }
  bool load() {
    return load([](uint64_t, uint64_t) { return false; });
  }

  // Logits of every token: the first n_prompt in chunks, the others one by one.
  std::vector<float> logits(const std::vector<int32_t>& tokens, int n_prompt) {
    std::vector<float> all;
    const std::function<bool()> poll = [] { return false; };
    const auto keep = [&](int rows) {
      all.insert(all.end(), runtime_.logits(0), runtime_.logits(0) + rows * kVocab);
    };
    const int n = static_cast<int>(tokens.size());
    for (int at = 0; at < n;) {
      const int left = at < n_prompt ? std::min(setup_.chunk, n_prompt - at) : 1;
      const bool at_once = left == 1 || random_.chance(0.3);  // logits of the last token only
      CHECK(runtime_.plan({0, 1}, poll));
      CHECK(runtime_.run(tokens.data() + at, left, at, at_once, poll));
      if (at_once && left > 1) {
        const std::vector<float> last(runtime_.logits(0), runtime_.logits(0) + kVocab);
        CHECK(runtime_.plan({1}, poll));
        CHECK(runtime_.run_head(0, left, poll));
        CHECK(std::memcmp(last.data(), runtime_.logits(left - 1), kVocab * sizeof(float)) == 0);
      } else if (!at_once) {
        CHECK(runtime_.run_head(0, left, poll));
      }
      keep(left);
      at += left;
    }
    return all;
  }

 private:
  int64_t take(size_t bytes) {
    const int64_t offset = static_cast<int64_t>(next_);
    next_ = (next_ + bytes + 4095) / 4096 * 4096;
    if (next_ > arena_.size()) throw std::bad_alloc();
    return offset;
  }
  int buffer(int width, bool quantized = false) {
    const size_t n = static_cast<size_t>(setup_.chunk) * width;
    return runtime_.add_buffer(
        {take(quantized ? n + n / kBlockColumns * 8 : n * 4), width, quantized});
  }
  int64_t vector(const std::string& name) {
    const TinyVector& vector = model_.vectors.at(name);
    const int n = static_cast<int>(vector.values.size());
    const int64_t offset = take(n * sizeof(float));
    runtime_.add_vector({vector.file_offset, vector.format, n, offset, vector.offset});
    return offset;
  }
  static Op op(OpKind kind, int src = -1, int src2 = -1, int dst = -1, float value = 0) {
    Op result;
    result.kind = kind;
    result.src = src;
    result.src2 = src2;
    result.dst = dst;
    result.value = value;
    return result;
  }
  void normalize(int segment, const std::string& name, int src, int dst) {
    Op norm = op(OpKind::kRmsNorm, src, -1, dst);
    norm.vector_offset = vector(name);
    norm.value = kEps;
    norm.width = static_cast<int>(model_.vectors.at(name).values.size());
    runtime_.add_op(segment, std::move(norm));
  }
  void matmul(int segment, std::vector<MatmulPart> parts) {
    Op product = op(OpKind::kMatmul);
    product.parts = std::move(parts);
    runtime_.add_op(segment, std::move(product));
  }
  int weight(const std::string& name) { return weight(name, setup_.residency); }
  int weight(const std::string& name, Residency residency) {
    const TinyWeight& w = model_.weights.at(name);
    const size_t bytes = row_bytes(model_.format, w.n_cols);
    Weight result = {model_.format, w.n_rows, w.n_cols, w.segment, {}};
    std::vector<StreamBlock> streamed;
    for (int r = 0, n; r < w.n_rows; r += n) {
      n = static_cast<int>(std::min<int64_t>(w.n_rows - r, random_.between(5, 70)));
      const uint64_t offset = w.offset + r * bytes;
      const AlignedExtent extent = file_.cover(offset, n * bytes);
      if (residency == Residency::kAll ||
          (residency == Residency::kAlternating && ++n_tiles_ % 2)) {
        const int64_t at = take(extent.length) + static_cast<int64_t>(extent.lead);
        runs_.push_back({offset, n * bytes, at});
        result.tiles.push_back({r, n, at, -1});
      } else {
        streamed.push_back({offset, n * bytes});
        largest_ = std::max(largest_, (extent.length + 4095) / 4096 * 4096);  // whole pages
        result.tiles.push_back({r, n, -1, -1});
      }
    }
    return runtime_.add_weight(std::move(result), streamed);
  }

  const TinyModel& model_;
  const TinySetup setup_;
  Random random_;
  Arena arena_;
  File file_;
  Runtime runtime_;
  size_t next_ = 0, largest_ = 4096;
  int n_tiles_ = 0, x_ = -1;
  std::vector<ResidentRun> runs_;
};

}  // namespace edge_rt::test
