#include "loaders/stream.h"

#include <algorithm>
#include <chrono>
#include <stdexcept>

namespace edge_rt {
namespace {

constexpr size_t kSlots = 4096;  // blocks with memory at one time
constexpr int kSpins = 2000;     // about 20 us before a waiting thread sleeps
constexpr auto kPollInterval = std::chrono::milliseconds(20);

// Blocks begin on pages, whatever less a direct read may ask for: a virtual drive copied into the
// middle of one at 0.8 times the speed (docs/measurements.md).
constexpr size_t kPage = 4096;

size_t whole_pages(size_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }

}  // namespace

StreamRing::StreamRing(Reader& reader, const File& file, std::byte* memory, size_t bytes)
    : reader_(reader), file_(file), memory_(memory), bytes_(bytes), segments_(2), slots_(kSlots) {}

StreamRing::~StreamRing() {
  sync::Lock lock(mutex_);
  arrived_.wait(lock, [this] { return in_flight_ == 0; });
}

void StreamRing::set_segments(std::vector<std::vector<StreamBlock>> segments) {
  if (segments.size() != 2) throw std::invalid_argument("the ring knows two segments");
  for (const auto& blocks : segments)
    for (const StreamBlock& block : blocks)
      if (whole_pages(file_.cover(block.offset, block.length).length) > bytes_)
        throw std::invalid_argument("a block of " + std::to_string(block.length) +
                                    " bytes does not fit the ring");
  reset();
  sync::Lock lock(mutex_);
  segments_ = std::move(segments);
}

void StreamRing::append(int segment) {
  instances_.push_back({segment, planned_});
  planned_ += segments_[segment].size();
}

bool StreamRing::plan(const std::vector<int>& wanted, const std::function<bool()>& poll) {
  sync::Lock lock(mutex_);
  if (abandoned_) {
    if (!wait_until_loaded(lock, poll)) return false;
    abandoned_ = false;
  }
  size_t same = 0;
  const size_t n_waiting = instances_.size() - n_begun_;
  while (same < wanted.size() && same < n_waiting &&
         instances_[n_begun_ + same].segment == wanted[same] &&
         !has_failed(instances_[n_begun_ + same]))
    ++same;
  if (same < wanted.size() && same < n_waiting) {  // a wrong guess: take its memory back
    if (!wait_until_loaded(lock, poll)) return false;
    const uint64_t cut = instances_[n_begun_ + same].first;
    instances_.resize(n_begun_ + same);
    planned_ = cut;
    // The numbers from `cut` on are given again: what was read for the guess must not answer for
    // them.
    for (uint64_t sequence = cut; sequence < granted_; ++sequence)
      slot(sequence).ready.store(0, std::memory_order_relaxed);
    if (granted_ > cut) granted_ = cut;
  }
  for (; same < wanted.size(); ++same) append(wanted[same]);
  grant();
  return true;
}

// Whether a block of it was read ahead in vain: the drive may be well by now.
bool StreamRing::has_failed(const Instance& instance) {
  if (!failed_) return false;
  const uint64_t end = std::min(granted_, instance.first + segments_[instance.segment].size());
  for (uint64_t sequence = instance.first; sequence < end; ++sequence) {
    const Slot& s = slot(sequence);
    if (s.ready.load(std::memory_order_relaxed) == sequence + 1 && s.error != 0) return true;
  }
  return false;
}

uint64_t StreamRing::begin(int segment) {
  sync::Lock lock(mutex_);
  if (n_begun_ >= instances_.size() || instances_[n_begun_].segment != segment)
    throw std::logic_error("this segment was not planned");
  const uint64_t first = instances_[n_begun_++].first;
  grant();
  return first;
}

bool StreamRing::allocate(size_t length, size_t* at) const {
  if (oldest_ == granted_) {
    *at = 0;
    return length <= bytes_;
  }
  const Slot& newest = slots_[(granted_ - 1) % slots_.size()];
  const size_t head = newest.at + newest.length;
  const size_t tail = slots_[oldest_ % slots_.size()].at;
  if (newest.at >= tail) {  // used memory is one run: try behind it, then before it
    *at = length <= bytes_ - head ? head : 0;
    return *at == head || length <= tail;
  }
  *at = head;
  return length <= tail - head;
}

void StreamRing::grant() {
  // Instances that are begun and wholly granted are history.
  while (n_begun_ > 0 &&
         granted_ >= instances_[0].first + segments_[instances_[0].segment].size()) {
    instances_.pop_front();
    --n_begun_;
  }
  if (segments_[0].empty() && segments_[1].empty()) return;
  size_t i = 0;
  while (granted_ - oldest_ < slots_.size()) {
    if (granted_ == planned_) append(instances_.empty() || instances_.back().segment == 1 ? 0 : 1);
    while (granted_ >= instances_[i].first + segments_[instances_[i].segment].size()) {
      if (++i == instances_.size()) append(instances_.back().segment == 1 ? 0 : 1);
    }
    const StreamBlock& block = segments_[instances_[i].segment][granted_ - instances_[i].first];
    const AlignedExtent extent = file_.cover(block.offset, block.length);
    size_t at;
    const size_t taken = whole_pages(extent.length);
    if (!allocate(taken, &at)) return;
    Slot& s = slot(granted_);
    s.at = at;
    s.length = taken;
    s.lead = extent.lead;
    s.error = 0;
    s.released = false;
    s.ready.store(0, std::memory_order_relaxed);
    bytes_requested_.fetch_add(extent.length, std::memory_order_relaxed);
    requests_.fetch_add(1, std::memory_order_relaxed);
    reader_.submit({extent.offset, extent.length, extent.lead + block.length, memory_ + at,
                    &StreamRing::on_done, this, granted_},
                   /*urgent=*/false);
    if (in_flight_ == 0) reading_since_ = std::chrono::steady_clock::now();
    ++in_flight_;  // not before: submit may throw, and on_done waits for our lock
    ++granted_;
  }
}

void StreamRing::on_done(void* context, uint64_t tag, int error, const char* reason) {
  auto* self = static_cast<StreamRing*>(context);
  sync::Lock lock(self->mutex_);
  Slot& s = self->slot(tag);
  s.error = error;
  if (error != 0) s.reason = reason, self->failed_ = true;
  s.ready.store(tag + 1, std::memory_order_release);
  if (self->in_flight_ == 1) self->reading_ns_ = self->reading_ns_now();
  --self->in_flight_;
  // Under the lock: once the last read is seen as done, the ring may be destroyed.
  self->arrived_.notify_all();
}

uint64_t StreamRing::reading_ns_now() const {
  if (in_flight_ == 0) return reading_ns_;
  const auto open = std::chrono::steady_clock::now() - reading_since_;
  return reading_ns_ + static_cast<uint64_t>(open / std::chrono::nanoseconds(1));
}

uint64_t StreamRing::reading_ns() const {
  sync::Lock lock(mutex_);
  return reading_ns_now();
}

const std::byte* StreamRing::wait(uint64_t sequence, const std::function<bool()>& poll) {
  Slot& s = slot(sequence);
  const auto is_ready = [&] { return s.ready.load(std::memory_order_acquire) == sequence + 1; };
  if (!sync::spin(kSpins, is_ready)) {
    while (!is_ready()) {
      if (poll()) return nullptr;
      sync::Lock lock(mutex_);
      arrived_.wait_for(lock, kPollInterval, is_ready);
    }
  }
  if (s.error != 0) throw IoError(s.error, s.reason);
  return memory_ + s.at + s.lead;
}

void StreamRing::release(uint64_t sequence) {
  sync::Lock lock(mutex_);
  slot(sequence).released = true;
  bool freed = false;
  while (oldest_ < granted_ && slot(oldest_).released) {
    slot(oldest_).released = false;
    ++oldest_;
    freed = true;
  }
  if (freed) grant();
}

bool StreamRing::wait_until_loaded(sync::Lock& lock, const std::function<bool()>& poll) {
  const auto is_idle = [this] { return in_flight_ == 0; };
  while (!is_idle()) {
    lock.unlock();
    const bool stop = poll();
    lock.lock();
    if (stop) return false;
    arrived_.wait_for(lock, kPollInterval, is_idle);
  }
  return true;
}

void StreamRing::reset() {
  sync::Lock lock(mutex_);
  instances_.clear();
  n_begun_ = 0;
  planned_ = oldest_ = granted_;
  failed_ = false;
  abandoned_ = true;
}

bool StreamRing::drain(const std::function<bool()>& poll) {
  sync::Lock lock(mutex_);
  return wait_until_loaded(lock, poll);
}

}  // namespace edge_rt
