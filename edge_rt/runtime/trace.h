// What the threads did in each step of a pass, if somebody wants to know.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace edge_rt {

// One thread in one step. Times are nanoseconds of the steady clock.
struct TraceEvent {
  uint64_t start, end;      // from its first unit to when it found no more
  uint64_t stall;           // of that it waited for streamed tiles
  uint64_t flash_bytes;     // of weights that it multiplied with: streamed ones
  uint64_t resident_bytes;  // and resident ones
  uint32_t n_units;
  uint16_t step;  // of the segment, or kEmbedding, kPass
  uint8_t segment, thread;

  // Thread 0's: waiting for the rows of the embedding, and a whole call of run() or run_head().
  static constexpr uint16_t kEmbedding = 0xffff, kPass = 0xfffe;
};
static_assert(sizeof(TraceEvent) == 48);

// Each thread writes to a list of its own, without locks, into memory that is there from the
// beginning; what does not fit is counted. Read between passes.
class Trace {
 public:
  // `memory`: `bytes` of it, aligned to 8; it must outlive the trace.
  void set_memory(std::byte* memory, size_t bytes, int n_threads);
  bool is_on() const { return !lanes_.empty(); }
  static uint64_t now();

  void begin_unit(int thread, int segment, int step) {
    TraceEvent& open = lanes_[thread].open;
    if (open.n_units++ == 0)
      open = {now(),
              0,
              0,
              0,
              0,
              1,
              static_cast<uint16_t>(step),
              static_cast<uint8_t>(segment),
              static_cast<uint8_t>(thread)};
  }
  void stalled(int thread, uint64_t ns) { lanes_[thread].open.stall += ns; }
  void multiplied(int thread, bool streamed, uint64_t bytes) {
    TraceEvent& open = lanes_[thread].open;
    (streamed ? open.flash_bytes : open.resident_bytes) += bytes;
  }
  void leave_step(int thread) {
    Lane& lane = lanes_[thread];
    if (lane.open.n_units == 0) return;
    lane.open.end = now();
    add(lane, lane.open);
    lane.open.n_units = 0;
  }

  // A span of thread 0 that is no step.
  void add_span(uint16_t step, uint64_t start, uint64_t stall);

  // Both REQUIRE that no pass runs.
  std::vector<TraceEvent> take();  // events since the last take(), by thread
  uint64_t n_lost() const;         // ever

 private:
  struct alignas(64) Lane {
    TraceEvent open{};  // n_units: 0: none
    TraceEvent* events = nullptr;
    size_t n = 0, capacity = 0;
    uint64_t n_lost = 0;
  };
  static void add(Lane& lane, const TraceEvent& event);
  std::vector<Lane> lanes_;
};

}  // namespace edge_rt
