// The stream ring: staging memory for weight blocks that are used once per pass.
//
// Blocks come in *segments*, each a fixed list in the order of use (0: the layers, 1: the head).
// The consumer says which segments it will run; past that the ring guesses that decoding goes on
// (layers, head, layers, ...) and reads ahead across layers and across the token boundary.
//
// Each block instance has a sequence number, ascending in the order of use, and these states:
//   planned -> loading   memory granted, read queued; granted strictly in sequence order
//   loading -> ready     the read arrived (or failed: wait() throws)
//   ready -> free        released by the consumer; memory is reused strictly in sequence order
// A thread that waits for a block holds no grant that the block needs: memory is granted in the
// order of use, so every earlier block is ready or loading and will be released without waiting for
// a later one. The ring therefore cannot deadlock as long as the largest block fits.
//
// Whoever gives a pass up (an error, a cancellation) does not wait for the reads in flight: reset()
// abandons them, and no memory is granted until the last of them has come back. plan() waits for
// that, interruptibly.
#pragma once

#include <atomic>
#include <chrono>
#include <deque>
#include <functional>
#include <string>
#include <vector>

#include "flash_io/reader.h"
#include "flash_io/sync.h"

namespace edge_rt {

struct StreamBlock {
  uint64_t offset;  // in the file
  size_t length;
};

class StreamRing {
 public:
  // `memory`: `bytes` of it, aligned to the file's alignment. All three must outlive the ring.
  StreamRing(Reader& reader, const File& file, std::byte* memory, size_t bytes);
  ~StreamRing();  // waits for reads in flight

  // Replaces the block lists and forgets everything read. Throws std::invalid_argument if a block
  // does not fit the ring. REQUIRES: no block is held.
  void set_segments(std::vector<std::vector<StreamBlock>> segments);

  // The segments that will be run next, in order. Blocks already read ahead are kept where the
  // guess was right and no read of it failed; else what is in flight is waited for, `poll` being
  // called now and then: true from it ends the wait with false and everything as it was. REQUIRES:
  // no block is held.
  bool plan(const std::vector<int>& segments, const std::function<bool()>& poll);

  // Starts the next planned segment, which must be `segment`; returns its first sequence number.
  uint64_t begin(int segment);

  // The payload of block `sequence`, once it is there. `poll` is called now and then while waiting;
  // true from it ends the wait with nullptr. Throws IoError if the read failed. Any thread.
  const std::byte* wait(uint64_t sequence, const std::function<bool()>& poll);

  // Whether wait() would return, or throw, at once. Any thread.
  bool is_ready(uint64_t sequence) const {
    return slots_[sequence % slots_.size()].ready.load(std::memory_order_acquire) == sequence + 1;
  }

  // Gives a block's memory back. Once per sequence number, in any order, any thread.
  void release(uint64_t sequence);

  // Forgets everything planned, loading or ready (after an error or a cancelled pass); does not
  // wait. REQUIRES: no block is held.
  void reset();

  // Waits until no read is in flight: true; or until `poll` says true: false. REQUIRES: nothing is
  // planned (after reset()).
  bool drain(const std::function<bool()>& poll);

  uint64_t bytes_requested() const { return bytes_requested_.load(std::memory_order_relaxed); }
  uint64_t requests() const { return requests_.load(std::memory_order_relaxed); }
  // Wall time with a read in flight, so far. There is none only while no memory is free or nothing
  // is planned.
  uint64_t reading_ns() const;

 private:
  struct Slot {
    sync::Atomic<uint64_t> ready{0};  // sequence + 1 once loaded
    size_t at = 0, length = 0, lead = 0;
    int error = 0;
    std::string reason;
    bool released = false;
  };
  struct Instance {  // a segment that is planned or running
    int segment;
    uint64_t first;  // sequence number of its first block
  };

  static void on_done(void* context, uint64_t tag, int error, const char* reason);
  void grant();  // with mutex_ held: hands out as much memory as there is
  bool allocate(size_t length, size_t* at) const;
  void append(int segment);
  bool has_failed(const Instance& instance);
  bool wait_until_loaded(sync::Lock& lock, const std::function<bool()>& poll);
  uint64_t reading_ns_now() const;  // with mutex_ held
  Slot& slot(uint64_t sequence) { return slots_[sequence % slots_.size()]; }

  Reader& reader_;
  const File& file_;
  std::byte* const memory_;
  const size_t bytes_;
  std::vector<std::vector<StreamBlock>> segments_;
  std::vector<Slot> slots_;

  mutable sync::Mutex mutex_;
  sync::CondVar arrived_;
  std::deque<Instance> instances_;  // not yet wholly granted or not yet begun
  size_t n_begun_ = 0;              // instances at the front that begin() has handed out
  uint64_t planned_ = 0;            // first sequence number that no instance has
  uint64_t granted_ = 0;            // first sequence number without memory
  uint64_t oldest_ = 0;             // first sequence number that still has memory
  uint64_t in_flight_ = 0;
  uint64_t reading_ns_ = 0;  // until the last time that no read was in flight
  // Not the scheduler's clock in tests: what is counted decides nothing.
  std::chrono::steady_clock::time_point reading_since_;
  bool failed_ = false;     // a read has, since the last reset
  bool abandoned_ = false;  // reads in flight belong to a plan that was given up: grant nothing
  std::atomic<uint64_t> bytes_requested_{0}, requests_{0};
};

}  // namespace edge_rt
