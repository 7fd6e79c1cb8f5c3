// A fixed team of compute threads that run one function together, the caller being thread 0.
#pragma once

#include <functional>
#include <vector>

#include "flash_io/sync.h"

namespace edge_rt {

class ThreadPool {
 public:
  explicit ThreadPool(int n_threads);  // starts n_threads - 1 threads; throws std::system_error
  ~ThreadPool();

  int size() const { return n_threads_; }

  // Runs task(0) here and task(1..n-1) on the others; returns when all have returned. While thread
  // 0 waits for the others, `meanwhile` is called here every 20 ms: another thread may wait for a
  // drive that does not answer, and only this one may be told to give up. Neither may throw. One
  // caller at a time.
  void run(const std::function<void(int)>& task, const std::function<void()>& meanwhile);

  // Waits inside a task until every thread of the team is here. Spins for a moment, then sleeps.
  void barrier(int thread);

 private:
  void work(int index);
  void stop();

  const int n_threads_;
  std::vector<sync::Thread> threads_;
  sync::Mutex mutex_;
  sync::CondVar wake_;
  const std::function<void(int)>* task_ = nullptr;
  const std::function<void()>* meanwhile_ = nullptr;
  sync::Atomic<uint64_t> round_{0};
  bool stop_ = false;

  sync::Atomic<int> arrived_{0};
  sync::Atomic<uint32_t> phase_{0};
  sync::Atomic<int> n_asleep_{0};  // in barrier()
  sync::CondVar passed_;
};

}  // namespace edge_rt
