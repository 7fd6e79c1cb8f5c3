#include "edge_rt/runtime/trace.h"

#include <chrono>

namespace edge_rt {

void Trace::set_memory(std::byte* memory, size_t bytes, int n_threads) {
  lanes_.resize(n_threads);
  const size_t capacity = bytes / sizeof(TraceEvent) / n_threads;
  for (Lane& lane : lanes_) {
    lane.events = reinterpret_cast<TraceEvent*>(memory);
    lane.capacity = capacity;
    memory += capacity * sizeof(TraceEvent);
  }
}

uint64_t Trace::now() {
  // Not the scheduler's clock in tests: what is traced decides nothing.
  const auto time = std::chrono::steady_clock::now().time_since_epoch();
  return static_cast<uint64_t>(time / std::chrono::nanoseconds(1));
}

void Trace::add(Lane& lane, const TraceEvent& event) {
  if (lane.n < lane.capacity) {
    lane.events[lane.n++] = event;
  } else {
    ++lane.n_lost;
  }
}

void Trace::add_span(uint16_t step, uint64_t start, uint64_t stall) {
  add(lanes_[0], {start, now(), stall, 0, 0, 1, step, 0, 0});
}

std::vector<TraceEvent> Trace::take() {
  std::vector<TraceEvent> taken;
  for (Lane& lane : lanes_) {
    taken.insert(taken.end(), lane.events, lane.events + lane.n);
    lane.n = 0;
  }
  return taken;
}

uint64_t Trace::n_lost() const {
  uint64_t lost = 0;
  for (const Lane& lane : lanes_) lost += lane.n_lost;
  return lost;
}

}  // namespace edge_rt
