// Running one pass: the compute threads take the units of one step after the other: rows of a
// matmul's tile, a head of attention, a token of the rest.
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
  const uint64_t trace_start = trace_.is_on() ? Trace::now() : 0;
  bool done = embed(tokens, n_tokens, stop);
  if (trace_.is_on())
    trace_.add_span(TraceEvent::kEmbedding, trace_start, Trace::now() - trace_start);
  if (done) {
    Pass pass(*this, stop);
    pass.n_tokens = n_tokens;
    pass.position = position;
    done = execute(pass);
  }
  if (done && with_head) done = run_rows(n_tokens - 1, 1, stop);
  if (done) {
    passes_.fetch_add(1, std::memory_order_relaxed);
    tokens_.fetch_add(n_tokens, std::memory_order_relaxed);
  }
  run_ns_.fetch_add(nanoseconds_since(start), std::memory_order_relaxed);
  if (trace_.is_on()) trace_.add_span(TraceEvent::kPass, trace_start, 0);
  return ended(done);
}

bool Runtime::run_head(int first, int n_rows, const std::function<bool()>& poll) {
  const Use use(*this);
  const uint64_t trace_start = trace_.is_on() ? Trace::now() : 0;
  const bool done = run_rows(first, n_rows, [&] { return cancelled_.load() || poll(); });
  if (trace_.is_on()) trace_.add_span(TraceEvent::kPass, trace_start, 0);
  return ended(done);
}

bool Runtime::run_rows(int first, int n_rows, const std::function<bool()>& poll) {
  if (first < 0 || n_rows < 1 || n_rows > logit_rows_ || first > max_tokens_ - n_rows)
    throw std::invalid_argument("logits of rows that were not computed");
  Pass pass(*this, poll);
  pass.segment = 1;
  pass.n_tokens = n_rows;
  pass.first_row = first;
  return execute(pass);
}

bool Runtime::execute(Pass& pass) {
  pass.sequence = ring_->begin(pass.segment);
  stop_.store(false, std::memory_order_relaxed);
  failure_error_ = 0;
  next_poll_ = Clock::now() + kPollInterval;
  for (int i = 0; i < attention_.n_heads; ++i)  // a pass that was given up may have left some
    spans_done_[i].store(0, std::memory_order_relaxed);
  uint64_t n_hits = 0, n_misses = 0;
  for (const auto& step : steps_[pass.segment]) {
    n_hits += step->n_resident_tiles;
    n_misses += step->tile_chunks.size();
    for (size_t t = 0; t < step->tile_chunks.size(); ++t)
      step->tile_left[t].store(step->tile_chunks[t], std::memory_order_relaxed);
    for (size_t b = 0; b < step->block_chunks.size(); ++b)
      step->block_left[b].store(step->block_chunks[b], std::memory_order_relaxed);
  }
  pool_->run(pass);
  if (!stop_.load(std::memory_order_relaxed)) {
    file_.check_unchanged();  // before anything is made of what was read
    block_hits_.fetch_add(n_hits, std::memory_order_relaxed);
    block_misses_.fetch_add(n_misses, std::memory_order_relaxed);
    return true;
  }
  ring_->reset();
  if (failure_error_ != 0) throw IoError(failure_error_, failure_);
  return false;
}

Work::Units Runtime::Pass::units(int index) const {
  const Step& s = step(index);
  switch (s.kind()) {
    case OpKind::kMatmul:
      return {s.n_streamed, static_cast<int>(s.chunks.size()) - s.n_streamed};
    case OpKind::kAttention:
      return {0, runtime.cut_attention(*this, s.ops[0]).n_units()};
    default:
      return {0, n_tokens};
  }
}

bool Runtime::Pass::is_ready(int index, int unit) const {
  const Step& s = step(index);
  const Chunk& chunk = s.chunks[unit];
  const Weight& weight = runtime.weights_[s.ops[0].parts[chunk.part].weight];
  return runtime.ring_->is_ready(sequence + weight.tiles[chunk.tile].stream_index);
}

void Runtime::Pass::run_unit(int index, int unit, int thread) {
  // A stopped pass still goes through its units, without doing anything.
  if (runtime.should_stop(*this, thread)) return;
  Trace& trace = runtime.trace_;
  if (trace.is_on()) trace.begin_unit(thread, segment, index);
  Step& s = *runtime.steps_[segment][index];
  switch (s.kind()) {
    case OpKind::kMatmul:
      runtime.run_chunk(*this, s, unit, thread);
      break;
    case OpKind::kAttention:
      runtime.run_attention(*this, s, unit, thread);
      break;
    default:
      for (const Op& op : s.ops) {
        const bool first_op = index == 0 && &op == &s.ops[0];
        const int buffer = op.dst < 0 ? op.src : op.dst;  // of kStoreKv
        const int width = buffer < 0 ? 0 : runtime.buffers_[buffer].width;
        runtime.run_op(*this, op, unit, first_op ? unit + first_row : unit, 0, width);
      }
  }
}

bool Runtime::should_stop(const Pass& pass, int thread) {
  if (stop_.load(std::memory_order_relaxed)) return true;
  if (thread != 0 || Clock::now() < next_poll_) return false;
  next_poll_ = Clock::now() + kPollInterval;
  if (!pass.poll()) return false;
  stop_.store(true, std::memory_order_relaxed);
  return true;
}

void Runtime::fail(const std::string& reason, int error) {
  sync::Lock lock(failure_mutex_);
  if (failure_error_ == 0) failure_ = reason, failure_error_ = error;
  stop_.store(true, std::memory_order_relaxed);
}

// An op for columns [first, first + n) of one token.
void Runtime::run_op(const Pass& pass, const Op& op, int token, int source_token, int first,
                     int n) {
  switch (op.kind) {
    case OpKind::kRmsNorm: {
      const auto* weight = reinterpret_cast<const float*>(at(op.vector_offset));
      const float* x = row(op.src, source_token);
      float* y = row(op.dst, token);
      for (int j = first; j < first + n; j += op.width)
        kernels_->rms_norm(x + j, weight, op.width, op.value, y + j);
      break;
    }
    case OpKind::kQuantize: {
      const Activations a = activations(op.dst);
      const size_t at = token * a.stride + first;
      kernels_->quantize(row(op.src, token) + first, n, const_cast<int8_t*>(a.codes) + at,
                         const_cast<float*>(a.scales) + at / kBlockColumns,
                         const_cast<int16_t*>(a.sums) + 2 * (at / kBlockColumns));
      break;
    }
    case OpKind::kAddBias: {
      const auto* bias = reinterpret_cast<const float*>(at(op.vector_offset));
      kernels_->add(row(op.dst, token) + first, bias + first, 1.0f, n);
      break;
    }
    case OpKind::kAdd:
      kernels_->add(row(op.dst, token) + first, row(op.src, token) + first, op.value, n);
      break;
    case OpKind::kScale: {
      float* y = row(op.dst, token);
      for (int j = first; j < first + n; ++j) y[j] = y[j] * op.value;
      break;
    }
    case OpKind::kSoftcap:
      kernels_->softcap(row(op.dst, token) + first, n, op.value);
      break;
    case OpKind::kRope: {
      const int n_dim = attention_.head_dim;
      kernels_->rope(row(op.dst, token) + first, n / n_dim, n_dim, row(op.src, token),
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
        for (int h = first / a.head_dim; h < (first + n) / a.head_dim; ++h)
          store_kv(kernels_, a.kv_format, which == 0,
                   row(which == 0 ? op.src : op.src2, token) + h * a.head_dim, a.head_dim,
                   kv(op.layer, which, h), position);
      break;
    }
    case OpKind::kSiluGate:
      kernels_->silu_gate(row(op.dst, token) + first, row(op.src, token) + first, n);
      break;
    case OpKind::kGeluGate:
      kernels_->gelu_gate(row(op.dst, token) + first, row(op.src, token) + first, n);
      break;
    case OpKind::kMatmul:
    case OpKind::kAttention:
      break;
  }
}

void Runtime::run_epilogue(const Pass& pass, const Epilogue& epilogue, int token, int first,
                           int n) {
  for (const Op& op : epilogue.ops) run_op(pass, op, token, token, first, n);
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
Runtime::AttentionCut Runtime::cut_attention(const Pass& pass, const Op& op) const {
  AttentionCut cut;
  const int end = pass.position + 1;
  cut.group = attention_.n_heads / attention_.n_kv_heads;
  cut.n_together = std::min<int>(cut.group, kAttentionQueries);
  cut.per_group = (cut.group + cut.n_together - 1) / cut.n_together;
  cut.n_sets = attention_.n_kv_heads * cut.per_group;
  cut.first_span = (op.window > 0 ? std::max(0, end - op.window) : 0) / kAttentionSpan;
  cut.spans = pass.n_tokens == 1 ? n_spans(end) - cut.first_span : 1;
  const int for_all = pass.n_tokens * cut.n_sets / (4 * pool_->size());  // enough for the threads
  cut.block = std::clamp(for_all, 1, kAttentionQueries / cut.n_together);
  cut.n_blocks = (pass.n_tokens + cut.block - 1) / cut.block;
  return cut;
}

void Runtime::run_attention(const Pass& pass, const Step& step, int index, int thread) {
  const AttentionShape& a = attention_;
  const Op& op = step.ops[0];
  const AttentionCut cut = cut_attention(pass, op);
  // The last tokens see the most positions: they come first.
  const int set = index / cut.spans % cut.n_sets;
  const int token = (cut.n_blocks - 1 - index / cut.spans / cut.n_sets) * cut.block;
  AttentionUnit unit{token, std::min(cut.block, pass.n_tokens - token), 0, 0, -1, nullptr};
  unit.head = set / cut.per_group * cut.group + set % cut.per_group * cut.n_together;
  unit.n_heads = std::min(cut.n_together, (set / cut.per_group + 1) * cut.group - unit.head);
  if (cut.spans == 1) {
    attend(pass, op, unit, thread);
  } else {
    const size_t columns = a.head_dim + 2;
    float* sums = reinterpret_cast<float*>(at(a.spans_offset)) + unit.head * cut.spans * columns;
    unit.span = cut.first_span + index % cut.spans;
    unit.span_sums = sums + index % cut.spans * unit.n_heads * columns;
    attend(pass, op, unit, thread);
    if (spans_done_[set].fetch_add(1, std::memory_order_acq_rel) + 1 < cut.spans) return;
    spans_done_[set].store(0, std::memory_order_relaxed);
    kernels_->merge_spans(sums, cut.spans, unit.n_heads, a.head_dim,
                          row(op.dst, 0) + unit.head * a.head_dim);
  }
  for (const Epilogue& epilogue : step.epilogues)
    for (int t = 0; t < unit.n_tokens; ++t)
      run_epilogue(pass, epilogue, token + t, unit.head * a.head_dim, unit.n_heads * a.head_dim);
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

void Runtime::run_chunk(const Pass& pass, Step& step, int unit, int thread) {
  auto* scratch = reinterpret_cast<uint8_t*>(at(scratch_offset_)) + thread * scratch_bytes_;
  const Chunk& chunk = step.chunks[unit];
  const MatmulPart& part = step.ops[0].parts[chunk.part];
  const Weight& weight = weights_[part.weight];
  const Tile& tile = weight.tiles[chunk.tile];
  const bool streamed = unit < step.n_streamed;
  const uint64_t sequence = pass.sequence + tile.stream_index;
  const std::byte* data = streamed ? wait_for_tile(pass, sequence, thread) : at(tile.arena_offset);
  if (data == nullptr) return;
  const size_t bytes = row_bytes(weight.format, weight.n_cols);
  const Rows rows = {reinterpret_cast<const uint8_t*>(data) + chunk.row * bytes, bytes,
                     chunk.n_rows, weight.n_cols, !streamed && weight.interleave != nullptr};
  const Activations x = activations(part.src);
  const int first = tile.row + chunk.row;
  const Output out = {row(part.dst, 0) + first, static_cast<size_t>(buffers_[part.dst].width),
                      part.accumulate};
  kernels_->matmul(weight.format)(&rows, &x, pass.n_tokens, &out, scratch);
  if (trace_.is_on()) trace_.multiplied(thread, streamed, chunk.n_rows * bytes);
  // Streamed tiles of a step follow each other in the stream.
  if (streamed && step.tile_left[tile.stream_index - step.first_streamed].fetch_sub(
                      1, std::memory_order_acq_rel) == 1)
    ring_->release(sequence);
  if (step.epilogue_of[chunk.part] < 0) return;
  const Epilogue& epilogue = step.epilogues[step.epilogue_of[chunk.part]];
  for (int b = first / epilogue.block; b * epilogue.block < first + chunk.n_rows; ++b) {
    if (step.block_left[epilogue.first_block + b].fetch_sub(1, std::memory_order_acq_rel) != 1)
      continue;
    const int column = b * epilogue.block;
    const int n = std::min(epilogue.block, epilogue.width - column);
    for (int t = 0; t < pass.n_tokens; ++t) run_epilogue(pass, epilogue, t, column, n);
  }
}

// The payload of a streamed tile; null if the pass is to stop.
const std::byte* Runtime::wait_for_tile(const Pass& pass, uint64_t sequence, int thread) {
  try {
    const bool ready = ring_->is_ready(sequence);
    const auto start = ready ? Clock::time_point() : Clock::now();
    const std::byte* data = ring_->wait(sequence, [&] { return should_stop(pass, thread); });
    if (ready) return data;
    const uint64_t waited = nanoseconds_since(start);
    stall_ns_.fetch_add(waited, std::memory_order_relaxed);
    if (trace_.is_on()) trace_.stalled(thread, waited);
    return data;
  } catch (const IoError& problem) {
    fail(problem.what(), problem.error());
    return nullptr;
  }
}

}  // namespace edge_rt
