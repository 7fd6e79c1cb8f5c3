// Running one pass: the compute threads walk the step list together; matmuls and attention are
// handed out in work units, the rest by token.
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "edge_rt/runtime/runtime.h"

namespace edge_rt {
namespace {

using sync::Clock;

constexpr auto kPollInterval = std::chrono::milliseconds(25);

uint64_t nanoseconds_since(Clock::time_point start) {
  return static_cast<uint64_t>((Clock::now() - start) / std::chrono::nanoseconds(1));
}

}  // namespace

bool Runtime::run(const int32_t* tokens, int n_tokens, int position, bool with_head,
                  const std::function<bool()>& poll) {
  if (n_tokens < 1 || n_tokens > max_tokens_ || position < 0 ||
      position > attention_.n_ctx - n_tokens)
    throw std::invalid_argument("a pass outside the context");
  const Use use(*this);
  const std::function<bool()> stop = [&] { return cancelled_.load() || poll(); };
  const auto start = Clock::now();
  bool done =
      embed(tokens, n_tokens, stop) && execute(0, {&stop, n_tokens, position, 0, 0, &steps_[0]});
  if (done && with_head) done = run_rows(n_tokens - 1, 1, stop);
  if (done) {
    passes_.fetch_add(1, std::memory_order_relaxed);
    tokens_.fetch_add(n_tokens, std::memory_order_relaxed);
  }
  run_ns_.fetch_add(nanoseconds_since(start), std::memory_order_relaxed);
  return ended(done);
}

bool Runtime::run_head(int first, int n_rows, const std::function<bool()>& poll) {
  const Use use(*this);
  return ended(run_rows(first, n_rows, [&] { return cancelled_.load() || poll(); }));
}

bool Runtime::run_rows(int first, int n_rows, const std::function<bool()>& poll) {
  if (first < 0 || n_rows < 1 || n_rows > logit_rows_ || first > max_tokens_ - n_rows)
    throw std::invalid_argument("logits of rows that were not computed");
  return execute(1, {&poll, n_rows, 0, first, 0, &steps_[1]});
}

bool Runtime::execute(int segment, Pass pass) {
  pass.sequence = ring_->begin(segment);
  stop_.store(false, std::memory_order_relaxed);
  failure_error_ = 0;
  next_poll_ = Clock::now() + kPollInterval;
  for (const auto& step : *pass.steps) {
    step->next.store(0, std::memory_order_relaxed);
    for (size_t t = 0; t < step->tile_chunks.size(); ++t)
      step->tile_left[t].store(step->tile_chunks[t], std::memory_order_relaxed);
  }
  pool_->run([&](int thread) { run_steps(pass, thread); }, [&] { should_stop(pass, 0); });
  if (!stop_.load(std::memory_order_relaxed)) {
    file_.check_unchanged();  // before anything is made of what was read
    return true;
  }
  ring_->reset();
  if (failure_error_ != 0) throw IoError(failure_error_, failure_);
  return false;
}

void Runtime::run_steps(const Pass& pass, int thread) {
  const auto& steps = *pass.steps;
  for (size_t i = 0; i < steps.size(); ++i) {
    Step& step = *steps[i];
    // A stopped pass still meets every barrier, so that no thread waits for one that left.
    if (!should_stop(pass, thread)) {
      if (step.by_token) {
        for (int t = thread; t < pass.n_tokens; t += pool_->size())
          run_by_token(pass, step.op, t, i == 0);
      } else if (step.op.kind == OpKind::kAttention) {
        run_attention(pass, step, thread);
      } else {
        run_chunks(pass, step, thread);
      }
    }
    const bool same_thread_goes_on =
        step.by_token && i + 1 < steps.size() && steps[i + 1]->by_token;
    if (!same_thread_goes_on && i + 1 < steps.size()) pool_->barrier(thread);
  }
}

bool Runtime::should_stop(const Pass& pass, int thread) {
  if (stop_.load(std::memory_order_relaxed)) return true;
  if (thread != 0 || Clock::now() < next_poll_) return false;
  next_poll_ = Clock::now() + kPollInterval;
  if (!(*pass.poll)()) return false;
  stop_.store(true, std::memory_order_relaxed);
  return true;
}

void Runtime::fail(const std::string& reason, int error) {
  sync::Lock lock(failure_mutex_);
  if (failure_error_ == 0) failure_ = reason, failure_error_ = error;
  stop_.store(true, std::memory_order_relaxed);
}

void Runtime::run_by_token(const Pass& pass, const Op& op, int token, bool first_op) {
  const int source_token = first_op ? token + pass.first_row : token;
  switch (op.kind) {
    case OpKind::kRmsNorm: {
      const auto* weight = reinterpret_cast<const float*>(at(op.vector_offset));
      const float* x = row(op.src, source_token);
      float* y = row(op.dst, token);
      for (int j = 0; j < buffers_[op.src].width; j += op.width)
        kernels_->rms_norm(x + j, weight, op.width, op.value, y + j);
      break;
    }
    case OpKind::kQuantize: {
      const Activations a = activations(op.dst);
      const size_t blocks = a.stride / kBlockColumns;
      kernels_->quantize(row(op.src, token), buffers_[op.src].width,
                         const_cast<int8_t*>(a.codes) + token * a.stride,
                         const_cast<float*>(a.scales) + token * blocks,
                         const_cast<int16_t*>(a.sums) + 2 * token * blocks);
      break;
    }
    case OpKind::kAddBias: {
      const auto* bias = reinterpret_cast<const float*>(at(op.vector_offset));
      float* y = row(op.dst, token);
      for (int j = 0; j < buffers_[op.dst].width; ++j) y[j] = y[j] + bias[j];
      break;
    }
    case OpKind::kAdd: {
      const float* x = row(op.src, token);
      float* y = row(op.dst, token);
      for (int j = 0; j < buffers_[op.dst].width; ++j) y[j] = y[j] + op.value * x[j];
      break;
    }
    case OpKind::kScale: {
      float* y = row(op.dst, token);
      for (int j = 0; j < buffers_[op.dst].width; ++j) y[j] = y[j] * op.value;
      break;
    }
    case OpKind::kSoftcap:
      kernels_->softcap(row(op.dst, token), buffers_[op.dst].width, op.value);
      break;
    case OpKind::kRope: {
      float* heads = row(op.dst, token);
      for (int j = 0; j < buffers_[op.dst].width; j += attention_.head_dim)
        rotate(heads + j, row(op.src, token), buffers_[op.src].width / 2);
      break;
    }
    case OpKind::kRopeTables:
      run_rope_tables(pass, token);
      break;
    case OpKind::kStoreKv: {
      const int n = attention_.head_dim;
      for (int which = 0; which < 2; ++which) {
        const float* source = row(which == 0 ? op.src : op.src2, token);
        for (int h = 0; h < attention_.n_kv_heads; ++h) {
          std::byte* target = kv(op.layer, which, h, pass.position + token);
          if (attention_.half) {
            kernels_->to_half(source + h * n, reinterpret_cast<uint16_t*>(target), n);
          } else {
            std::memcpy(target, source + h * n, n * sizeof(float));
          }
        }
      }
      break;
    }
    case OpKind::kSiluGate:
      kernels_->silu_gate(row(op.dst, token), row(op.src, token), buffers_[op.dst].width);
      break;
    case OpKind::kGeluGate:
      kernels_->gelu_gate(row(op.dst, token), row(op.src, token), buffers_[op.dst].width);
      break;
    case OpKind::kMatmul:
    case OpKind::kAttention:
      break;
  }
}

void Runtime::run_rope_tables(const Pass& pass, int token) {
  for (const RopeTable& table : rope_tables_) {
    const size_t n = table.frequencies.size();
    float* values = row(table.buffer, token);
    for (size_t i = 0; i < n; ++i) {
      const double angle = (pass.position + token) * table.frequencies[i];
      values[i] = static_cast<float>(std::cos(angle) * table.magnitude);
      values[n + i] = static_cast<float>(std::sin(angle) * table.magnitude);
    }
  }
}

void Runtime::rotate(float* head, const float* table, int n_pairs) const {
  for (int i = 0; i < n_pairs; ++i) {
    const float c = table[i], s = table[n_pairs + i];
    float* a = attention_.rope_halves ? head + i : head + 2 * i;
    float* b = attention_.rope_halves ? head + i + n_pairs : head + 2 * i + 1;
    const float x = *a, y = *b;
    *a = std::fma(x, c, -(y * s));
    *b = std::fma(x, s, y * c);
  }
}

float Runtime::attention_scale(const Op& op, int position) const {
  if (attention_.temperature == 0) return op.value;
  const double periods = position / attention_.temperature_length;
  return static_cast<float>(op.value * (1 + attention_.temperature * std::log1p(periods)));
}

void Runtime::run_attention(const Pass& pass, Step& step, int thread) {
  const AttentionShape& a = attention_;
  const int n_units = pass.n_tokens * a.n_heads;
  const int group = a.n_heads / a.n_kv_heads;
  // The last tokens see the most positions: hand them out first.
  for (int unit; (unit = step.next.fetch_add(1, std::memory_order_relaxed)) < n_units;) {
    if (should_stop(pass, thread)) return;
    const int token = pass.n_tokens - 1 - unit / a.n_heads, head = unit % a.n_heads;
    const int position = pass.position + token;
    const bool windowed = step.op.window > 0 && position >= step.op.window;
    const AttentionArgs args = {row(step.op.src, token) + head * a.head_dim,
                                kv(step.op.layer, 0, head / group, 0),
                                kv(step.op.layer, 1, head / group, 0),
                                row(step.op.dst, token) + head * a.head_dim,
                                a.head_dim,
                                position + 1,
                                attention_scale(step.op, position),
                                windowed ? position + 1 - step.op.window : 0,
                                step.op.cap,
                                a.kv_positions[step.op.layer]};
    (a.half ? kernels_->attention_f16 : kernels_->attention_f32)(&args);
  }
}

void Runtime::run_chunks(const Pass& pass, Step& step, int thread) {
  auto* scratch = reinterpret_cast<uint8_t*>(at(scratch_offset_)) + thread * scratch_bytes_;
  const int n_chunks = static_cast<int>(step.chunks.size());
  const std::function<bool()> poll = [&] { return should_stop(pass, thread); };
  for (int c; (c = step.next.fetch_add(1, std::memory_order_relaxed)) < n_chunks;) {
    if (should_stop(pass, thread)) return;
    const Chunk& chunk = step.chunks[c];
    const MatmulPart& part = step.op.parts[chunk.part];
    const Weight& weight = weights_[part.weight];
    const Tile& tile = weight.tiles[chunk.tile];
    const bool streamed = tile.arena_offset < 0;
    const uint64_t sequence = pass.sequence + tile.stream_index;
    const std::byte* data = nullptr;
    if (streamed) {
      const auto start = Clock::now();
      try {
        data = ring_->wait(sequence, poll);
      } catch (const IoError& problem) {
        return fail(problem.what(), problem.error());
      }
      if (data == nullptr) return;
      stall_ns_.fetch_add(nanoseconds_since(start), std::memory_order_relaxed);
    } else {
      data = at(tile.arena_offset);
    }
    const size_t bytes = row_bytes(weight.format, weight.n_cols);
    const Rows rows = {reinterpret_cast<const uint8_t*>(data) + chunk.row * bytes, bytes,
                       chunk.n_rows, weight.n_cols, !streamed && weight.interleave != nullptr};
    const Activations x = activations(part.src);
    const Output out = {row(part.dst, 0) + tile.row + chunk.row,
                        static_cast<size_t>(buffers_[part.dst].width), part.accumulate};
    kernels_->matmul(weight.format)(&rows, &x, pass.n_tokens, &out, scratch);
    const int left = step.tile_left[step.tile_base[chunk.part] + chunk.tile].fetch_sub(
        1, std::memory_order_acq_rel);
    if (left != 1) continue;
    (streamed ? block_misses_ : block_hits_).fetch_add(1, std::memory_order_relaxed);
    if (streamed) ring_->release(sequence);
  }
}

}  // namespace edge_rt
