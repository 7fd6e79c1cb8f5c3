// Running one pass: the compute threads walk the step list together; matmuls and attention are
// handed out in work units, the rest by token.
#include <algorithm>
#include <array>
#include <cmath>
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
  for (int i = 0; i < attention_.n_heads; ++i)  // a pass that was given up may have left some
    spans_done_[i].store(0, std::memory_order_relaxed);
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
      kernels_->add(row(op.dst, token), bias, 1.0f, buffers_[op.dst].width);
      break;
    }
    case OpKind::kAdd:
      kernels_->add(row(op.dst, token), row(op.src, token), op.value, buffers_[op.dst].width);
      break;
    case OpKind::kScale: {
      float* y = row(op.dst, token);
      for (int j = 0; j < buffers_[op.dst].width; ++j) y[j] = y[j] * op.value;
      break;
    }
    case OpKind::kSoftcap:
      kernels_->softcap(row(op.dst, token), buffers_[op.dst].width, op.value);
      break;
    case OpKind::kRope: {
      const int n = attention_.head_dim;
      kernels_->rope(row(op.dst, token), buffers_[op.dst].width / n, n, row(op.src, token),
                     buffers_[op.src].width / 2, attention_.rope_halves);
      break;
    }
    case OpKind::kRopeTables:
      run_rope_tables(pass, token);
      break;
    case OpKind::kStoreKv: {
      const AttentionShape& a = attention_;
      const int position = (pass.position + token) % a.kv_positions[op.layer];
      for (int which = 0; which < 2; ++which)
        for (int h = 0; h < a.n_kv_heads; ++h)
          store_kv(kernels_, a.kv_format, which == 0,
                   row(which == 0 ? op.src : op.src2, token) + h * a.head_dim, a.head_dim,
                   kv(op.layer, which, h), position);
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

float Runtime::attention_scale(const Op& op, int position) const {
  if (attention_.temperature == 0) return op.value;
  const double periods = position / attention_.temperature_length;
  return static_cast<float>(op.value * (1 + attention_.temperature * std::log1p(periods)));
}

// The heads that share a KV head go through its cache together, of several tokens at once where
// there are many. Of one token the spans are units, too: a KV head or two would not keep the
// threads busy. Who does a span last merges them all, in their order.
void Runtime::run_attention(const Pass& pass, Step& step, int thread) {
  const AttentionShape& a = attention_;
  const int group = a.n_heads / a.n_kv_heads, n_together = std::min<int>(group, kAttentionQueries);
  const int per_group = (group + n_together - 1) / n_together, n_sets = a.n_kv_heads * per_group;
  const int n_tokens = pass.n_tokens, end = pass.position + 1, window = step.op.window;
  const int first_span = (window > 0 ? std::max(0, end - window) : 0) / kAttentionSpan;
  const int spans = n_tokens == 1 ? n_spans(end) - first_span : 1;
  const int for_all = n_tokens * n_sets / (4 * pool_->size());  // enough units for the threads
  const int block = std::clamp(for_all, 1, kAttentionQueries / n_together);
  const int n_blocks = (n_tokens + block - 1) / block, n_units = n_blocks * n_sets * spans;
  // The last tokens see the most positions: hand them out first.
  for (int i; (i = step.next.fetch_add(1, std::memory_order_relaxed)) < n_units;) {
    if (should_stop(pass, thread)) return;
    const int set = i / spans % n_sets, token = (n_blocks - 1 - i / spans / n_sets) * block;
    AttentionUnit unit{token, std::min(block, n_tokens - token), 0, 0, -1, nullptr};
    unit.head = set / per_group * group + set % per_group * n_together;
    unit.n_heads = std::min(n_together, (set / per_group + 1) * group - unit.head);
    if (spans == 1) {
      attend(pass, step.op, unit, thread);
      continue;
    }
    const size_t columns = a.head_dim + 2;
    float* sums = reinterpret_cast<float*>(at(a.spans_offset)) + unit.head * spans * columns;
    unit.span = first_span + i % spans;
    unit.span_sums = sums + i % spans * unit.n_heads * columns;
    attend(pass, step.op, unit, thread);
    if (spans_done_[set].fetch_add(1, std::memory_order_acq_rel) + 1 < spans) continue;
    spans_done_[set].store(0, std::memory_order_relaxed);
    kernels_->merge_spans(sums, spans, unit.n_heads, a.head_dim,
                          row(step.op.dst, 0) + unit.head * a.head_dim);
  }
}

void Runtime::attend(const Pass& pass, const Op& op, const AttentionUnit& unit, int thread) {
  const AttentionShape& a = attention_;
  const int kv_head = unit.head / (a.n_heads / a.n_kv_heads), position = pass.position + unit.token;
  std::array<float, kAttentionQueries> scales;
  for (int t = 0; t < unit.n_tokens; ++t) scales[t] = attention_scale(op, position + t);
  const AttentionArgs args = {
      a.kv_format,
      row(op.src, unit.token) + unit.head * a.head_dim,
      unit.span < 0 ? row(op.dst, unit.token) + unit.head * a.head_dim : unit.span_sums,
      static_cast<size_t>(buffers_[op.src].width),
      kv(op.layer, 0, kv_head),
      kv(op.layer, 1, kv_head),
      unit.n_tokens,
      unit.n_heads,
      a.head_dim,
      a.kv_positions[op.layer],
      position,
      op.window,
      scales.data(),
      op.cap,
      unit.span,
      reinterpret_cast<uint8_t*>(at(scratch_offset_)) + thread * scratch_bytes_};
  kernels_->attention(&args);
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
                       chunk.n_rows, weight.n_cols};
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
