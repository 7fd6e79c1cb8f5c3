#include "edge_rt/runtime/thread_pool.h"

#include <algorithm>
#include <chrono>
#include <system_error>

namespace edge_rt {
namespace {

constexpr size_t kStackBytes = 256 * 1024;
constexpr int kSpins = 4000;  // some 50 us: longer than most waits for another thread's last unit
constexpr auto kMeanwhile = std::chrono::milliseconds(20);

}  // namespace

ThreadPool::ThreadPool(int n_threads) : n_threads_(n_threads) {
  try {
    for (int i = 1; i < n_threads; ++i)
      threads_.emplace_back(kStackBytes, [this, i] { attend(i); });
  } catch (const std::system_error& problem) {
    stop();
    throw std::system_error(problem.code(), "cannot start a compute thread");
  }
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() {
  {
    sync::Lock lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  for (sync::Thread& thread : threads_) thread.join();
  threads_.clear();
}

void ThreadPool::run(Work& work) {
  {
    sync::Lock lock(mutex_);
    work_ = &work;
    n_steps_ = work.n_steps();
    open_ = true;
    round_.fetch_add(1);
    show_step(0);
    changed_.notify_all();
  }
  for (State state = take_units(0); !is_over(state); state = take_units(0))
    sleep_until_changed(state);
  sync::Lock lock(mutex_);
  open_ = false;
  left_.wait(lock, [this] { return n_inside_ == 0; });
}

void ThreadPool::attend(int index) {
  uint64_t round = 0;
  State seen = 0;
  bool over = true;
  for (;;) {
    if (over) sync::spin(kSpins, [&] { return round_.load(std::memory_order_relaxed) != round; });
    sync::Lock lock(mutex_);
    for (;;) {
      if (stop_) return;
      asleep_.store(true);
      const State state = state_.load();
      if (open_ && !is_over(state) && (round_.load() != round || state != seen)) break;
      changed_.wait(lock);
    }
    round = round_.load();
    ++n_inside_;
    lock.unlock();
    seen = take_units(index);
    over = is_over(seen);
    lock.lock();
    if (--n_inside_ == 0 && !open_) left_.notify_all();
  }
}

bool ThreadPool::is_over(State state) const {
  return static_cast<int>(state >> kStepShift) == n_steps_;
}

void ThreadPool::sleep_until_changed(State seen) {
  sync::Lock lock(mutex_);
  for (;;) {
    asleep_.store(true);
    if (state_.load() != seen) return;
    if (changed_.wait_for(lock, kMeanwhile) == std::cv_status::no_timeout) continue;
    lock.unlock();
    work_->meanwhile();
    lock.lock();
  }
}

ThreadPool::State ThreadPool::take_units(int thread) {
  int mine = -1;  // the step of the units that this thread has run
  const auto leave = [&] {
    if (mine >= 0) work_->leave_step(thread);
    mine = -1;
  };
  for (;;) {
    State state = state_.load(std::memory_order_acquire);
    const int step = static_cast<int>(state >> kStepShift);
    if (step != mine) leave();
    if (is_over(state)) return state;
    const int n_waiting = static_cast<int>(state >> kWaitingShift & kUnitMask);
    const int n_free = static_cast<int>(state & kUnitMask);
    const Work::Units units = work_->units(step);
    const bool some_waiting = n_waiting < units.waiting, some_free = n_free < units.free;
    if (!some_waiting && !some_free) {
      leave();
      const auto is_changed = [&] { return state_.load(std::memory_order_relaxed) != state; };
      if (sync::spin(kSpins, is_changed)) continue;
      return state;
    }
    const bool waiting = some_waiting && (!some_free || work_->is_ready(step, n_waiting));
    // Several free units at a time, fewer towards the end: the threads meet less often, and end
    // together (guided self-scheduling, Polychronopoulos and Kuck 1987).
    const int n = waiting ? 1 : std::max(1, (units.free - n_free) / (2 * n_threads_));
    const State next = state + (static_cast<State>(n) << (waiting ? kWaitingShift : 0));
    if (!state_.compare_exchange_strong(state, next, std::memory_order_acq_rel)) continue;
    mine = step;
    const int first = waiting ? n_waiting : units.waiting + n_free;
    for (int unit = first; unit < first + n; ++unit) work_->run_unit(step, unit, thread);
    if (unfinished_.fetch_sub(n, std::memory_order_acq_rel) == n) end_step(step);
  }
}

int ThreadPool::show_step(int step) {
  const int n_units = step == n_steps_ ? 0 : work_->units(step).total();
  unfinished_.store(n_units, std::memory_order_relaxed);
  state_.store(static_cast<State>(step) << kStepShift);
  return n_units;
}

void ThreadPool::end_step(int step) {
  // A single unit is ours: whoever ends a step goes on taking.
  if (show_step(step + 1) == 1) return;
  // In one total order with the stores and loads of who goes to sleep: either we see that it may
  // sleep, or it sees the new state.
  if (!asleep_.load()) return;
  sync::Lock lock(mutex_);
  asleep_.store(false);
  changed_.notify_all();
}

}  // namespace edge_rt
