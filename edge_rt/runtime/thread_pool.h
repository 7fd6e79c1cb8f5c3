// A fixed team of compute threads that run one function together, the caller being thread 0.
#pragma once

#include <pthread.h>

#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <vector>

namespace edge_rt {

class ThreadPool {
 public:
  explicit ThreadPool(int n_threads);  // starts n_threads - 1 threads; throws std::system_error
  ~ThreadPool();

  int size() const { return n_threads_; }

  // Runs task(0) here and task(1..n-1) on the others; returns when all have returned. Tasks must
  // not throw. One caller at a time.
  void run(const std::function<void(int)>& task);

  // Waits inside a task until every thread of the team is here. Spins for a moment, then sleeps.
  void barrier();

 private:
  void work(int index);
  void stop();

  const int n_threads_;
  std::vector<pthread_t> threads_;
  std::mutex mutex_;
  std::condition_variable wake_;
  const std::function<void(int)>* task_ = nullptr;
  std::atomic<uint64_t> round_{0};
  bool stop_ = false;

  std::atomic<int> arrived_{0};
  std::atomic<uint32_t> phase_{0};
};

}  // namespace edge_rt
