#include "edge_rt/runtime/thread_pool.h"

#include <memory>
#include <system_error>
#include <utility>

namespace edge_rt {
namespace {

constexpr size_t kStackBytes = 256 * 1024;
constexpr int kSpins = 4000;  // some 50 us: longer than the gap between two operations

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace

ThreadPool::ThreadPool(int n_threads) : n_threads_(n_threads) {
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, kStackBytes);
  for (int i = 1; i < n_threads; ++i) {
    auto start = std::make_unique<std::pair<ThreadPool*, int>>(this, i);
    pthread_t thread;
    const int error = pthread_create(
        &thread, &attributes,
        [](void* argument) -> void* {
          std::unique_ptr<std::pair<ThreadPool*, int>> mine(
              static_cast<std::pair<ThreadPool*, int>*>(argument));
          mine->first->work(mine->second);
          return nullptr;
        },
        start.get());
    if (error != 0) {
      pthread_attr_destroy(&attributes);
      stop();
      throw std::system_error(error, std::generic_category(), "cannot start a compute thread");
    }
    start.release();
    threads_.push_back(thread);
  }
  pthread_attr_destroy(&attributes);
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  for (pthread_t thread : threads_) pthread_join(thread, nullptr);
  threads_.clear();
}

void ThreadPool::run(const std::function<void(int)>& task) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    task_ = &task;
    round_.fetch_add(1, std::memory_order_release);
  }
  wake_.notify_all();
  task(0);
  barrier();
}

void ThreadPool::work(int index) {
  uint64_t seen = 0;
  for (;;) {
    for (int i = 0; i < kSpins && round_.load(std::memory_order_acquire) == seen; ++i) pause();
    const std::function<void(int)>* task;
    {
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [&] { return stop_ || round_.load(std::memory_order_relaxed) != seen; });
      if (stop_) return;
      seen = round_.load(std::memory_order_relaxed);
      task = task_;
    }
    (*task)(index);
    barrier();
  }
}

void ThreadPool::barrier() {
  if (n_threads_ == 1) return;
  const uint32_t phase = phase_.load(std::memory_order_acquire);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) == n_threads_ - 1) {
    arrived_.store(0, std::memory_order_relaxed);
    phase_.store(phase + 1, std::memory_order_release);
    phase_.notify_all();
    return;
  }
  for (int i = 0; i < kSpins; ++i) {
    if (phase_.load(std::memory_order_acquire) != phase) return;
    pause();
  }
  while (phase_.load(std::memory_order_acquire) == phase) phase_.wait(phase);
}

}  // namespace edge_rt
