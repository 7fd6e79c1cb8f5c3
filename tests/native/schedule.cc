#include "tests/native/schedule.h"

#include <cxxabi.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif

namespace edge_rt::sync {
namespace {

constexpr size_t kStackBytes = 512 * 1024;
constexpr uint64_t kMostSteps = 400000;  // of one run: more is a livelock
constexpr int kMostTimeouts = 2000;      // in a row that only time let anybody go on
constexpr size_t kTraced = 64;           // operations that are printed

struct Fiber {
  int id;
  std::function<void()> body;
  const void* waits_for = nullptr;  // a mutex, a condition variable or a fiber; nullptr: can run
  bool timed = false, timed_out = false;
  Clock::time_point deadline;
  bool done = false;
  uint64_t priority = 0;
  ucontext_t context;
  const void* stack = nullptr;
  size_t stack_bytes = 0;
  unsigned char exceptions[sizeof(void*) + sizeof(unsigned)] = {};  // being thrown or handled
  void* fake_stack = nullptr;                                       // of the address sanitizer
  void* tsan = nullptr;
};

struct Entry {
  int fiber;
  const char* what;
  const void* object;
  Where where;
};

struct Run {
  uint64_t state;  // of the random numbers
  const char* repeat;
  bool by_priority;
  double stay, timeout, spurious;
  std::vector<uint64_t> changes;  // steps at which the running thread's priority falls
  uint64_t lowest = 1u << 20;     // the next priority to fall to
  uint64_t steps = 0;
  int timeouts_in_a_row = 0;
  int threads_left = -1;
  Clock::time_point now{std::chrono::seconds(1)};
  std::vector<std::unique_ptr<Fiber>> fibers;
  Fiber* current = nullptr;
  Fiber* leaving = nullptr;  // whoever switched to `current`
  std::vector<Entry> trace;  // a ring
  uint64_t traced = 0;
};

Run* run = nullptr;
Fiber* outside = nullptr;  // the OS thread's own stack
const Mutant* mutant = nullptr;
uint64_t all_steps = 0;
std::vector<void*> free_stacks;

const char* name_of(Operation operation) {
  switch (operation) {
    case Operation::kLock:
      return "lock";
    case Operation::kUnlock:
      return "unlock";
    case Operation::kWait:
      return "wait";
    case Operation::kNotify:
      return "notify";
    case Operation::kLoad:
      return "load";
    case Operation::kStore:
      return "store";
    case Operation::kChange:
      return "change";
    case Operation::kSpin:
      return "spin";
    case Operation::kStart:
      return "start thread";
    case Operation::kJoin:
      return "join";
    case Operation::kStep:
      return "step";
  }
  return "?";
}

const char* base_name(const char* path) {
  const char* slash = std::strrchr(path, '/');
  return slash ? slash + 1 : path;
}

bool is_mutated(Operation operation, const Where& where) {
  if (mutant == nullptr || mutant->operation != operation) return false;
  return std::strcmp(base_name(where.file_name()), mutant->file) == 0 &&
         std::strstr(where.function_name(), mutant->function) != nullptr;
}

void note(const char* what, const void* object, const Where& where) {
  const Entry entry = {run->current->id, what, object, where};
  if (run->trace.size() < kTraced) {
    run->trace.push_back(entry);
  } else {
    run->trace[run->traced % kTraced] = entry;
  }
  ++run->traced;
}

void swap_exceptions(Fiber& from, Fiber& to) {
  void* mine = abi::__cxa_get_globals();
  std::memcpy(from.exceptions, mine, sizeof from.exceptions);
  std::memcpy(mine, to.exceptions, sizeof to.exceptions);
}

// What the sanitizers must know before and after the stack changes.
void before_switch([[maybe_unused]] Fiber& from, [[maybe_unused]] Fiber& to) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(from.done ? nullptr : &from.fake_stack, to.stack, to.stack_bytes);
#endif
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(to.tsan, 0);
#endif
}
void after_switch([[maybe_unused]] Fiber& now) {
#if defined(__SANITIZE_ADDRESS__)
  Fiber& left = *run->leaving;
  const void* bottom;
  size_t size;
  __sanitizer_finish_switch_fiber(now.fake_stack, &bottom, &size);
  left.stack = bottom, left.stack_bytes = size;
#endif
}

void switch_to(Fiber& to) {
  Fiber& from = *run->current;
  if (&from == &to) return;
  run->leaving = &from;
  run->current = &to;
  swap_exceptions(from, to);
  before_switch(from, to);
  swapcontext(&from.context, &to.context);
  after_switch(from);
}

[[noreturn]] void end(const char* reason) {
  std::fprintf(stderr, "%s\n", reason);
  for (const auto& fiber : run->fibers) {
    if (fiber->done) continue;
    std::fprintf(stderr, "  thread %d %s\n", fiber->id,
                 fiber.get() == run->current ? "runs"
                 : fiber->waits_for          ? (fiber->timed ? "waits for a while" : "waits")
                                             : "can run");
  }
  const uint64_t n = run->trace.size();
  std::fprintf(stderr, "the last operations of %llu:\n",
               static_cast<unsigned long long>(run->traced));
  for (uint64_t i = 0; i < n; ++i) {
    const Entry& e = run->trace[(run->traced - n + i) % n];
    std::fprintf(stderr, "  %d  %-12s %p  %s:%u\n", e.fiber, e.what, e.object,
                 base_name(e.where.file_name()), e.where.line());
  }
  std::fprintf(stderr, "repeat: %s\n", run->repeat);
  std::fflush(stderr);
  _exit(1);
}

void trampoline() {
  Fiber& self = *run->current;
  after_switch(self);
  self.body();
  self.body = nullptr;
  self.done = true;
  for (const auto& other : run->fibers)
    if (other->waits_for == &self) other->waits_for = nullptr;
  if (self.id == 0) {
    for (const auto& other : run->fibers)
      if (!other->done) end("a thread is left behind");
    switch_to(*outside);
  }
  run->now += std::chrono::microseconds(1);
  point(Operation::kStep, nullptr, Where::current());  // does not come back
}

Fiber& new_fiber(std::function<void()> body) {
  auto fiber = std::make_unique<Fiber>();
  fiber->id = static_cast<int>(run->fibers.size());
  fiber->body = std::move(body);
  fiber->priority = (1u << 21) + choose(1u << 20);
  if (free_stacks.empty()) {
    void* p = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
    if (p == MAP_FAILED) end("no memory for a stack");
    free_stacks.push_back(p);
  }
  void* stack = free_stacks.back();
  free_stacks.pop_back();
  fiber->stack = stack;
  fiber->stack_bytes = kStackBytes;
  getcontext(&fiber->context);
  fiber->context.uc_stack.ss_sp = stack;
  fiber->context.uc_stack.ss_size = kStackBytes;
  fiber->context.uc_link = nullptr;
  makecontext(&fiber->context, trampoline, 0);
#if defined(__SANITIZE_THREAD__)
  fiber->tsan = __tsan_create_fiber(0);
#endif
  run->fibers.push_back(std::move(fiber));
  return *run->fibers.back();
}

void wake(Fiber& fiber) { fiber.waits_for = nullptr; }

Fiber* nth(uint64_t n, bool (*counts)(const Fiber&)) {
  for (const auto& fiber : run->fibers)
    if (counts(*fiber) && n-- == 0) return fiber.get();
  return nullptr;
}
uint64_t count(bool (*counts)(const Fiber&)) {
  return std::count_if(run->fibers.begin(), run->fibers.end(),
                       [&](const auto& fiber) { return counts(*fiber); });
}
bool can_run(const Fiber& fiber) { return !fiber.done && fiber.waits_for == nullptr; }
bool has_deadline(const Fiber& fiber) { return !fiber.done && fiber.waits_for && fiber.timed; }

void let_time_pass() {
  Fiber* late = nth(choose(count(has_deadline)), has_deadline);
  run->now = std::max(run->now, late->deadline);
  late->timed_out = true;
  wake(*late);
}

// Picks who goes on and switches there.
void reschedule() {
  if (run->timeout > 0 && count(has_deadline) > 0 && chance(run->timeout)) let_time_pass();
  uint64_t n = count(can_run);
  if (n == 0) {
    if (count(has_deadline) == 0) end("deadlock: nobody can run");
    if (++run->timeouts_in_a_row > kMostTimeouts) end("deadlock: only timeouts let anybody run");
    let_time_pass();
    n = 1;
  } else if (n > 1) {
    run->timeouts_in_a_row = 0;
  }
  Fiber& current = *run->current;
  Fiber* next = nullptr;
  if (run->by_priority) {
    for (const auto& fiber : run->fibers)
      if (can_run(*fiber) && (next == nullptr || fiber->priority > next->priority))
        next = fiber.get();
  } else if (can_run(current) && chance(run->stay)) {
    next = &current;
  } else {
    next = nth(choose(n), can_run);
  }
  switch_to(*next);
}

void fall(Fiber& fiber) { fiber.priority = run->lowest--; }

}  // namespace

bool point(Operation operation, const void* object, const Where& where) {
  if (run == nullptr) return true;  // outside of runs there is one thread
  Fiber& self = *run->current;
  const bool works = !is_mutated(operation, where);
  note(works ? name_of(operation) : "MUTATED", object, where);
  ++all_steps;
  if (++run->steps > kMostSteps) end("livelock: this takes too many steps");
  run->now += std::chrono::microseconds(1);
  if (operation == Operation::kSpin) fall(self);
  for (const uint64_t change : run->changes)
    if (change == run->steps) fall(self);
  reschedule();
  return works;
}

uint64_t choose(uint64_t n) {
  run->state += 0x9e3779b97f4a7c15u;  // splitmix64
  uint64_t z = run->state;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return (z ^ (z >> 31)) % n;
}

void step(Where where) { point(Operation::kStep, nullptr, where); }
bool spin_point(const Where& where) { return point(Operation::kSpin, nullptr, where); }
void set_mutant(const Mutant* wanted) { mutant = wanted; }
void fail_schedule(const char* reason) {
  if (run != nullptr) end(reason);
  std::fprintf(stderr, "%s\n", reason);
  _exit(1);
}
uint64_t steps_taken() { return all_steps; }
void limit_threads(int n) { run->threads_left = n; }

void run_schedule(uint64_t seed, const char* repeat, const std::function<void()>& body) {
  Run here;
  Fiber main;
  main.id = -1;
  here.state = seed;
  here.repeat = repeat;
  run = &here;
  outside = &main;
#if defined(__SANITIZE_THREAD__)
  main.tsan = __tsan_get_current_fiber();
#endif
  const double stays[] = {0, 0.5, 0.9};
  const double rare[] = {0, 0.002, 0.05};
  here.by_priority = choose(2) == 0;
  here.stay = stays[choose(3)];
  here.timeout = rare[choose(3)];
  here.spurious = rare[choose(3)];
  const uint64_t length = uint64_t{32} << choose(10);
  for (uint64_t n = choose(5); n > 0; --n) here.changes.push_back(1 + choose(length));
  here.current = &main;
  Fiber& first = new_fiber(body);
  switch_to(first);
  for (const auto& fiber : here.fibers) {
    free_stacks.push_back(fiber->context.uc_stack.ss_sp);
#if defined(__SANITIZE_THREAD__)
    __tsan_destroy_fiber(fiber->tsan);
#endif
  }
  run = nullptr;
}

Clock::time_point Clock::now() { return run ? run->now : time_point(std::chrono::seconds(1)); }

Mutex::~Mutex() {
  if (owner_ != nullptr) fail_schedule("a lock is destroyed while it is held");
}

void Mutex::take() {
  while (owner_ != nullptr) {
    if (owner_ == run->current) fail_schedule("a thread locks what it holds");
    run->current->waits_for = this;
    run->current->timed = false;
    reschedule();
    check_alive();
  }
  owner_ = run->current;
}

void Mutex::lock(Where where) {
  check_alive();
  if (run == nullptr) return;
  if (!point(Operation::kLock, this, where)) return;
  check_alive();
  take();
}

void Mutex::unlock(Where where) {
  check_alive();
  if (run == nullptr || owner_ != run->current) return;  // the mutant's, or outside of runs
  note("unlock", this, where);
  owner_ = nullptr;
  for (const auto& fiber : run->fibers)
    if (fiber->waits_for == this) wake(*fiber);
}

CondVar::~CondVar() {
  if (run == nullptr) return;
  for (const auto& fiber : run->fibers)
    if (fiber->waits_for == this) fail_schedule("somebody waits for what is destroyed");
}

void CondVar::notify_one(Where where) {
  check_alive();
  if (!point(Operation::kNotify, this, where) || run == nullptr) return;
  check_alive();
  std::vector<Fiber*> waiting;
  for (const auto& fiber : run->fibers)
    if (fiber->waits_for == this) waiting.push_back(fiber.get());
  if (!waiting.empty()) wake(*waiting[choose(waiting.size())]);
}

void CondVar::notify_all(Where where) {
  check_alive();
  if (!point(Operation::kNotify, this, where) || run == nullptr) return;
  check_alive();
  for (const auto& fiber : run->fibers)
    if (fiber->waits_for == this) wake(*fiber);
}

bool CondVar::sleep(Lock& lock, Clock::duration limit, const Where& where) {
  check_alive();
  if (run == nullptr) fail_schedule("a wait outside of a run");
  Fiber& self = *run->current;
  const bool timed = limit >= Clock::duration::zero();
  // Between the look at the condition and the sleep: only the lock keeps others from changing it.
  if (is_mutated(Operation::kWait, where)) lock.unlock(where);
  point(Operation::kWait, this, where);
  if (lock.held_) lock.unlock(where);
  bool timed_out = false;
  if (!chance(run->spurious)) {
    self.waits_for = this;
    self.timed = timed;
    self.timed_out = false;
    self.deadline = run->now + limit;
    reschedule();
    timed_out = self.timed_out;
    self.timed = self.timed_out = false;
  }
  check_alive();
  lock.lock(where);
  return !timed_out;
}

Thread::Thread(size_t, std::function<void()> body, Where where) {
  point(Operation::kStart, nullptr, where);
  if (run->threads_left == 0) throw std::system_error(EAGAIN, std::generic_category());
  if (run->threads_left > 0) --run->threads_left;
  id_ = new_fiber(std::move(body)).id;
}

ThreadId this_thread() { return run ? run->current->id : -1; }

void Thread::join(Where where) {
  point(Operation::kJoin, nullptr, where);
  Fiber* other = run->fibers[id_].get();
  while (!other->done) {
    run->current->waits_for = other;
    run->current->timed = false;
    reschedule();
  }
}

}  // namespace edge_rt::sync
