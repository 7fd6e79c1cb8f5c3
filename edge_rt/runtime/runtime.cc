// Building a Runtime, and its small accessors. load.cc fills it, execute.cc runs it.
#include "edge_rt/runtime/runtime.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <stdexcept>

namespace edge_rt {
namespace {

constexpr auto kCloseInterval = std::chrono::milliseconds(20);

}  // namespace

Runtime::Runtime(Arena& arena, const File& file, const Kernels* kernels, int n_threads,
                 const std::string& io, int max_tokens)
    : owner_(getpid()),
      arena_(arena),
      file_(file),
      kernels_(kernels),
      max_tokens_(max_tokens),
      io_(io),
      pool_(std::make_unique<ThreadPool>(n_threads)) {}

Runtime::~Runtime() {
  if (owner_ != getpid()) {  // a forked child waits in vain for threads that only the parent has
    (void)ring_.release();
    (void)reader_.release();
    (void)pool_.release();
    return;
  }
  ring_.reset();    // waits for its reads
  reader_.reset();  // then the threads that would run them end
}

bool Runtime::close(const std::function<bool()>& poll) {
  if (owner_ != getpid()) return true;
  cancel();
  sync::Lock lock(use_mutex_);
  const auto me = sync::this_thread();  // a poll may run a signal handler that closes, too
  if ((in_use_ && user_ == me) || (closing_ && closer_ == me)) return true;
  while (in_use_ || closing_) {
    lock.unlock();
    if (poll()) return false;
    lock.lock();
    left_.wait_for(lock, kCloseInterval, [this] { return !in_use_ && !closing_; });
  }
  if (reader_ == nullptr) return true;
  closing_ = true;
  closer_ = me;
  lock.unlock();
  const bool idle = wait_for_batch(1, poll) && (ring_ == nullptr || ring_->drain(poll));
  if (idle) {
    reader_.reset();
    pool_.reset();
  }
  lock.lock();
  closing_ = false;
  left_.notify_all();
  return idle;
}

Runtime::Use::Use(Runtime& runtime) : runtime_(runtime) {
  sync::Lock lock(runtime.use_mutex_);
  if (runtime.cancelled_.load()) throw UseError("the engine is closed");
  if (runtime.in_use_) throw UseError("the engine is busy with another request");
  runtime.in_use_ = true;
  runtime.user_ = sync::this_thread();
}

Runtime::Use::~Use() {
  sync::Lock lock(runtime_.use_mutex_);
  runtime_.in_use_ = false;
  runtime_.left_.notify_all();
}

bool Runtime::ended(bool done) const {
  if (cancelled_.load()) throw UseError("the engine is closed");
  return done;
}

bool Runtime::plan(const std::vector<int>& segments, const std::function<bool()>& poll) {
  const Use use(*this);
  return ended(ring_->plan(segments, [&] { return cancelled_.load() || poll(); }));
}

int Runtime::add_buffer(const Buffer& buffer) {
  buffers_.push_back(buffer);
  return static_cast<int>(buffers_.size()) - 1;
}

int Runtime::add_weight(Weight weight, const std::vector<StreamBlock>& streamed) {
  auto& list = streamed_.at(weight.segment);
  size_t next = 0;
  for (Tile& tile : weight.tiles) {
    if (tile.arena_offset >= 0) continue;
    tile.stream_index = static_cast<int>(list.size());
    list.push_back(streamed.at(next++));
  }
  if (kernels_->interleave != nullptr) weight.interleave = kernels_->interleave(weight.format);
  weights_.push_back(std::move(weight));
  return static_cast<int>(weights_.size()) - 1;
}

void Runtime::set_attention(AttentionShape shape) {
  attention_ = std::move(shape);
  kv_offsets_.clear();
  int64_t offset = attention_.kv_offset;
  for (const int positions : attention_.kv_positions) {
    kv_offsets_.push_back(offset);
    offset += int64_t{2} * attention_.n_kv_heads *
              kv_head_bytes(attention_.kv_format, attention_.head_dim, positions);
  }
  spans_done_ = std::make_unique<sync::Atomic<int>[]>(attention_.n_heads);
}

void Runtime::set_scratch(int64_t offset, size_t bytes_per_thread) {
  scratch_offset_ = offset;
  scratch_bytes_ = bytes_per_thread;
}

void Runtime::finish(int64_t ring_offset, size_t ring_bytes) {
  // Only a norm reads the rows that were asked for; a head that began otherwise would use others.
  if (ops_[1].empty() || ops_[1][0].kind != OpKind::kRmsNorm)
    throw std::invalid_argument("the head must begin with a norm");
  for (int segment : {0, 1}) {
    for (const Op& op : ops_[segment]) {
      for (const MatmulPart& part : op.parts) check_matmul(part, segment);
      if (op.kind == OpKind::kAttention) check_attention(op);
    }
    build_steps(segment);
  }
  reader_ = make_reader(file_, io_, at(ring_offset), ring_bytes, &why_no_uring_);
  io_ = reader_->name();
  ring_ = std::make_unique<StreamRing>(*reader_, file_, at(ring_offset), ring_bytes);
  ring_->set_segments({streamed_[0], streamed_[1]});
}

void Runtime::check_matmul(const MatmulPart& part, int segment) const {
  const Weight& weight = weights_.at(part.weight);
  if (row_bytes(weight.format, weight.n_cols) == 0 || weight.segment != segment)
    throw std::invalid_argument("a matmul needs a known format and its own segment");
  const std::string format = "format " + std::to_string(weight.format);
  if (kernels_->matmul(weight.format) == nullptr)
    throw std::invalid_argument("the " + std::string(kernels_->name) +
                                " kernels have no matmul for weights of " + format);
  if (buffers_.at(part.src).quantized != is_block_format(weight.format))
    throw std::invalid_argument("a matmul with weights of " + format + " reads the wrong buffer");
  if (matmul_scratch_bytes(weight.n_cols) > scratch_bytes_)
    throw std::invalid_argument("the matmul scratch is too small");
}

void Runtime::check_attention(const Op& op) const {
  const int rows = attention_.kv_positions.at(op.layer);
  const bool whole = rows >= attention_.n_ctx;
  const bool enough = op.window > 0 && rows >= op.window + max_tokens_ - 1;
  if (!whole && (!enough || rows % kAttentionTile != 0))
    throw std::invalid_argument("the KV cache of layer " + std::to_string(op.layer) +
                                " forgets positions that its attention sees");
  if (attention_scratch_bytes(attention_.head_dim) > scratch_bytes_)
    throw std::invalid_argument("the attention scratch is too small");
}

float* Runtime::row(int buffer, int token) const {
  const Buffer& b = buffers_[buffer];
  return reinterpret_cast<float*>(at(b.offset)) + static_cast<size_t>(token) * b.width;
}

Activations Runtime::activations(int buffer) const {
  const Buffer& b = buffers_[buffer];
  const size_t width = static_cast<size_t>(b.width);
  if (!b.quantized) return {row(buffer, 0), nullptr, nullptr, nullptr, width};
  std::byte* p = at(b.offset);
  const size_t n = static_cast<size_t>(max_tokens_) * width;
  return {nullptr, reinterpret_cast<const int8_t*>(p), reinterpret_cast<const float*>(p + n),
          reinterpret_cast<const int16_t*>(p + n + n / kBlockColumns * sizeof(float)), width};
}

std::byte* Runtime::kv(int layer, int which, int head) const {
  const AttentionShape& a = attention_;
  const size_t bytes = kv_head_bytes(a.kv_format, a.head_dim, a.kv_positions[layer]);
  return at(kv_offsets_[layer]) + (size_t{1} * which * a.n_kv_heads + head) * bytes;
}

const float* Runtime::logits(int r) const {
  if (cancelled_.load()) throw UseError("the engine is closed");
  if (r < 0 || r >= logit_rows_) throw std::invalid_argument("no such row of logits");
  return row(logits_, r);
}

std::vector<std::vector<int>> Runtime::steps(int segment) const {
  std::vector<std::vector<int>> described;
  for (const auto& step : steps_.at(segment)) described.push_back(step->described);
  return described;
}

std::vector<TraceEvent> Runtime::take_trace() {
  const Use use(*this);
  return trace_.take();
}

Stats Runtime::stats() const {
  Stats s;
  s.passes = passes_.load(std::memory_order_relaxed);
  s.tokens = tokens_.load(std::memory_order_relaxed);
  s.run_ns = run_ns_.load(std::memory_order_relaxed);
  s.block_hits = block_hits_.load(std::memory_order_relaxed);
  s.block_misses = block_misses_.load(std::memory_order_relaxed);
  s.stall_ns = stall_ns_.load(std::memory_order_relaxed);
  s.reading_ns = ring_->reading_ns();
  s.flash_bytes = ring_->bytes_requested() + extra_bytes_.load(std::memory_order_relaxed);
  s.flash_requests = ring_->requests() + extra_requests_.load(std::memory_order_relaxed);
  return s;
}

}  // namespace edge_rt
