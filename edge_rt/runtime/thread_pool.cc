#include "edge_rt/runtime/thread_pool.h"

#include <chrono>
#include <system_error>

namespace edge_rt {
namespace {

constexpr size_t kStackBytes = 256 * 1024;
constexpr int kSpins = 4000;  // some 50 us: longer than the gap between two operations
constexpr auto kMeanwhile = std::chrono::milliseconds(20);

}  // namespace

ThreadPool::ThreadPool(int n_threads) : n_threads_(n_threads) {
  try {
    for (int i = 1; i < n_threads; ++i) threads_.emplace_back(kStackBytes, [this, i] { work(i); });
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
  wake_.notify_all();
  for (sync::Thread& thread : threads_) thread.join();
  threads_.clear();
}

void ThreadPool::run(const std::function<void(int)>& task, const std::function<void()>& meanwhile) {
  {
    sync::Lock lock(mutex_);
    task_ = &task;
    meanwhile_ = &meanwhile;
    round_.fetch_add(1, std::memory_order_release);
  }
  wake_.notify_all();
  task(0);
  barrier(0);
}

void ThreadPool::work(int index) {
  uint64_t seen = 0;
  for (;;) {
    sync::spin(kSpins, [&] { return round_.load(std::memory_order_acquire) != seen; });
    const std::function<void(int)>* task;
    {
      sync::Lock lock(mutex_);
      wake_.wait(lock, [&] { return stop_ || round_.load(std::memory_order_relaxed) != seen; });
      if (stop_) return;
      seen = round_.load(std::memory_order_relaxed);
      task = task_;
    }
    (*task)(index);
    barrier(index);
  }
}

void ThreadPool::barrier(int thread) {
  if (n_threads_ == 1) return;
  const uint32_t phase = phase_.load(std::memory_order_acquire);
  const auto is_over = [&] { return phase_.load() != phase; };
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) == n_threads_ - 1) {
    arrived_.store(0, std::memory_order_relaxed);
    phase_.store(phase + 1);
    // In one total order with the stores and loads of who goes to sleep: either we see that it
    // sleeps, or it sees that the barrier is over.
    if (n_asleep_.load() == 0) return;
    sync::Lock lock(mutex_);
    passed_.notify_all();
    return;
  }
  if (sync::spin(kSpins, is_over)) return;
  sync::Lock lock(mutex_);
  n_asleep_.fetch_add(1);
  if (thread != 0) {
    passed_.wait(lock, is_over);
  } else {
    while (!passed_.wait_for(lock, kMeanwhile, is_over)) {
      lock.unlock();
      (*meanwhile_)();
      lock.lock();
    }
  }
  n_asleep_.fetch_sub(1);
}

}  // namespace edge_rt
