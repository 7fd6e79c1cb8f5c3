// Threads, locks, waits and atomics of everything that works concurrently: all of it goes through
// these names. In production they are the C++ library's and pthread's. Compiled with
// EDGE_RT_SCHEDULE they belong to a deterministic scheduler that runs one thread at a time and
// decides by a seed who goes on (tests/native/schedule.h).
#pragma once

#ifdef EDGE_RT_SCHEDULE
#include "tests/native/schedule.h"
#else

#include <pthread.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <system_error>
#include <utility>

namespace edge_rt::sync {

using Mutex = std::mutex;
using Lock = std::unique_lock<std::mutex>;
using CondVar = std::condition_variable;
template <typename T>
using Atomic = std::atomic<T>;
using Clock = std::chrono::steady_clock;

// A thread with a stack of our choice: stacks count against the budget. Must be joined.
class Thread {
 public:
  // Throws std::system_error.
  Thread(size_t stack_bytes, std::function<void()> body) {
    auto start = std::make_unique<std::function<void()> >(std::move(body));
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, stack_bytes);
    const int error = pthread_create(
        &thread_, &attributes,
        [](void* argument) -> void* {
          const std::unique_ptr<std::function<void()> > mine(
              static_cast<std::function<void()>*>(argument));
          (*mine)();
          return nullptr;
        },
        start.get());
    pthread_attr_destroy(&attributes);
    if (error != 0) throw std::system_error(error, std::generic_category());
    (void)start.release();
  }

  void join() { pthread_join(thread_, nullptr); }

 private:
  pthread_t thread_;
};

using ThreadId = pthread_t;
inline ThreadId this_thread() { return pthread_self(); }

// Tries `done()` up to `times` times, about 10 ns apart; whether it came true.
template <typename Done>
bool spin(int times, Done done) {
  for (int i = 0; i < times; ++i) {
    if (done()) return true;
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("isb");  // "yield" does nothing, and takes no time, on most of them
#endif
  }
  return false;
}

}  // namespace edge_rt::sync

#endif
