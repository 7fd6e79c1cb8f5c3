// The deterministic scheduler behind flash_io/sync.h in tests compiled with EDGE_RT_SCHEDULE.
//
// One thread runs at a time, as a fiber of the test's only OS thread. Every operation on a lock, a
// condition variable, an atomic or a thread is a point at which a seed decides who goes on: by a
// uniform random walk, or by priorities that fall at a few random points (probabilistic concurrency
// testing: Burckhardt, Kothari, Musuvathi, Nagarakatti, "A Randomized Scheduler with Probabilistic
// Guarantees of Finding Bugs", ASPLOS 2010). Waiting ends spuriously now and then, timeouts come
// when the seed says so or nothing else can run, and time is virtual. When nobody can run, the test
// fails with the seed and the last operations. Atomics are sequentially consistent here: what
// weaker orders allow is the thread sanitizer's to find.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <source_location>
#include <system_error>

namespace edge_rt::sync {

using Where = std::source_location;

enum class Operation {
  kLock,
  kUnlock,
  kWait,
  kNotify,
  kLoad,
  kStore,
  kChange,  // read-modify-write of an atomic
  kSpin,
  kStart,
  kJoin,
  kStep,
};

// A defect to be put in by the scheduler, so that a test shows that it would find it: operations of
// one kind in one function of one file do not do their work.
struct Mutant {
  const char* name;
  const char* file;      // end of the path
  const char* function;  // part of its signature
  Operation operation;   // kLock: no exclusion; kWait: looks first, then waits without the lock
};

// Whether the operation is to be done: false for the mutant's. May switch to another thread.
bool point(Operation operation, const void* object, const Where& where);
uint64_t choose(uint64_t n);  // 0 .. n-1, by the seed
inline bool chance(double p) { return static_cast<double>(choose(1u << 30)) < p * (1u << 30); }
void step(Where where = Where::current());  // a point without an operation
void set_mutant(const Mutant* mutant);      // nullptr: none

// Runs `body` as the first thread under `seed`. A deadlock, a livelock, a thread that is left or
// the use of something destroyed ends the process with status 1, after `repeat` and the last
// operations were printed.
void run_schedule(uint64_t seed, const char* repeat, const std::function<void()>& body);
[[noreturn]] void fail_schedule(const char* reason);
uint64_t steps_taken();  // by all runs

// Something that threads share; using it after its end fails the test.
class Shared {
 public:
  Shared() = default;
  Shared(const Shared&) = delete;
  Shared& operator=(const Shared&) = delete;
  ~Shared() { alive_ = 0; }
  void check_alive() const {
    if (alive_ != kAlive) fail_schedule("use of something destroyed");
  }

 private:
  static constexpr uint32_t kAlive = 0x5a17ed;
  volatile uint32_t alive_ = kAlive;
};

struct Clock {
  using duration = std::chrono::nanoseconds;
  using rep = duration::rep;
  using period = duration::period;
  using time_point = std::chrono::time_point<Clock>;
  static constexpr bool is_steady = true;
  static time_point now();
};

class Mutex : Shared {
 public:
  ~Mutex();
  void lock(Where where = Where::current());
  void unlock(Where where = Where::current());

 private:
  friend class CondVar;
  void take();
  void* owner_ = nullptr;
};

class Lock {
 public:
  explicit Lock(Mutex& mutex, Where where = Where::current()) : mutex_(mutex) { lock(where); }
  ~Lock() {
    if (held_) unlock();
  }
  Lock(const Lock&) = delete;
  Lock& operator=(const Lock&) = delete;
  void lock(Where where = Where::current()) {
    mutex_.lock(where);
    held_ = true;
  }
  void unlock(Where where = Where::current()) {
    held_ = false;
    mutex_.unlock(where);
  }

 private:
  friend class CondVar;
  Mutex& mutex_;
  bool held_ = false;
};

class CondVar : Shared {
 public:
  ~CondVar();
  void notify_one(Where where = Where::current());
  void notify_all(Where where = Where::current());
  void wait(Lock& lock, Where where = Where::current()) { sleep(lock, Clock::duration(-1), where); }
  template <typename Done>
  void wait(Lock& lock, Done done, Where where = Where::current()) {
    while (!done()) wait(lock, where);
  }
  template <typename Duration>
  std::cv_status wait_for(Lock& lock, Duration limit, Where where = Where::current()) {
    return sleep(lock, limit, where) ? std::cv_status::no_timeout : std::cv_status::timeout;
  }
  template <typename Duration, typename Done>
  bool wait_for(Lock& lock, Duration limit, Done done, Where where = Where::current()) {
    const auto end = Clock::now() + limit;
    while (!done()) {
      if (Clock::now() >= end || !sleep(lock, end - Clock::now(), where)) return done();
    }
    return true;
  }

 private:
  bool sleep(Lock& lock, Clock::duration limit, const Where& where);  // false: timeout
};

template <typename T>
class Atomic : Shared {
 public:
  Atomic() = default;
  Atomic(T value) : value_(value) {}  // NOLINT: as std::atomic's

  T load(std::memory_order = std::memory_order_seq_cst, Where where = Where::current()) const {
    check_alive();
    point(Operation::kLoad, this, where);
    return value_;
  }
  void store(T value, std::memory_order = std::memory_order_seq_cst,
             Where where = Where::current()) {
    check_alive();
    if (point(Operation::kStore, this, where)) value_ = value;
  }
  T exchange(T value, std::memory_order = std::memory_order_seq_cst,
             Where where = Where::current()) {
    const bool works = change(where);
    const T before = value_;
    if (works) value_ = value;
    return before;
  }
  bool compare_exchange_strong(T& expected, T value, std::memory_order = std::memory_order_seq_cst,
                               Where where = Where::current()) {
    const bool works = change(where);
    const bool same = value_ == expected;
    expected = value_;
    if (same && works) value_ = value;
    return same;
  }
  T fetch_add(T n, std::memory_order = std::memory_order_seq_cst, Where where = Where::current()) {
    const bool works = change(where);
    const T before = value_;
    if (works) value_ = static_cast<T>(before + n);
    return before;
  }
  T fetch_sub(T n, std::memory_order = std::memory_order_seq_cst, Where where = Where::current()) {
    const bool works = change(where);
    const T before = value_;
    if (works) value_ = static_cast<T>(before - n);
    return before;
  }

 private:
  bool change(const Where& where) {
    check_alive();
    return point(Operation::kChange, this, where);
  }
  T value_{};
};

class Thread {
 public:
  Thread(size_t stack_bytes, std::function<void()> body, Where where = Where::current());
  void join(Where where = Where::current());

 private:
  int id_;
};
using ThreadId = int;
ThreadId this_thread();

// Threads that can be started before the next one fails; -1: any number. Lasts for one run.
void limit_threads(int n);

bool spin_point(const Where& where);
template <typename Done>
bool spin(int, Done done, Where where = Where::current()) {
  if (done()) return true;
  spin_point(where);
  return done();
}

}  // namespace edge_rt::sync
