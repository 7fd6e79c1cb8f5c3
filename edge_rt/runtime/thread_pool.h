// A fixed team of compute threads that work through steps together, the caller being thread 0.
#pragma once

#include <vector>

#include "flash_io/sync.h"

namespace edge_rt {

// Steps that follow each other, each of independent units.
class Work {
 public:
  struct Units {
    int waiting = 0;  // may have to wait for something; taken in ascending order
    int free = 0;     // never do
    int total() const { return waiting + free; }
  };
  // Both below kMaxSteps and kMaxUnits; every step has a unit. Constant while the work is run.
  virtual int n_steps() const = 0;
  virtual Units units(int step) const = 0;
  // Whether waiting unit `unit` could be done at once. A hint; may be called for a step that is
  // over.
  virtual bool is_ready(int step, int unit) const = 0;
  // Units count from 0, the waiting ones first. Must not throw.
  virtual void run_unit(int step, int unit, int thread) = 0;
  // Called by a thread that has run units of a step, before it waits or goes on to another step, or
  // the work is over. Must not throw.
  virtual void leave_step(int thread) = 0;
  // Called by thread 0 every 20 ms while it waits for the others: another thread may wait for a
  // drive that does not answer, and only this one may be told to give up. Must not throw.
  virtual void meanwhile() = 0;

  static constexpr int kMaxSteps = 1 << 16, kMaxUnits = 1 << 24;

 protected:
  ~Work() = default;
};

// Nobody waits for a thread, only for units that were begun: whoever is there takes the next one.
// So a thread that the system has put aside between two units holds nobody up, and if it sleeps the
// others do all of the work. Threads that find nothing to do spin for a moment, then sleep.
class ThreadPool {
 public:
  explicit ThreadPool(int n_threads);  // starts n_threads - 1 threads; throws std::system_error
  ~ThreadPool();

  int size() const { return n_threads_; }

  // Runs every unit once; a step begins when all units of the one before have returned. While a
  // waiting unit could not be done at once, the step's free ones go first. What units wrote is
  // visible to the next step's, and to the caller. One caller at a time.
  void run(Work& work);

 private:
  // What there is to take: the step, its waiting units and its free units that were taken.
  using State = uint64_t;
  static constexpr int kStepShift = 48, kWaitingShift = 24;
  static constexpr State kUnitMask = Work::kMaxUnits - 1;

  void attend(int index);
  State take_units(int thread);  // until there is nothing to take; returns where that was
  int show_step(int step);       // to everybody; returns the number of its units
  void end_step(int step);       // begins the next one, or the end
  bool is_over(State state) const;
  void sleep_until_changed(State seen);  // thread 0
  void stop();

  const int n_threads_;
  std::vector<sync::Thread> threads_;
  sync::Mutex mutex_;
  sync::CondVar changed_, left_;
  Work* work_ = nullptr;
  int n_steps_ = 0;    // of work_
  int n_inside_ = 0;   // threads other than 0 that may look at work_
  bool open_ = false;  // and whether more may come
  bool stop_ = false;

  sync::Atomic<uint64_t> round_{0};
  sync::Atomic<State> state_{0};
  sync::Atomic<int> unfinished_{0};   // units of the current step
  sync::Atomic<bool> asleep_{false};  // somebody may wait for changed_
};

}  // namespace edge_rt
