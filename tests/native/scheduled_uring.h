// The kernel's side of flash_io/uring.h as the deterministic scheduler plays it: reads complete in
// any order and number, short, or with an error that is to be tried again; waits end for nothing;
// and what a test may ask for, submitting fails for good.
#pragma once

#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "flash_io/sync.h"

namespace edge_rt {

class Uring {
 public:
  static inline int setup_error = 0;          // of the next one
  static inline int reads_until_broken = -1;  // -1: it never breaks

  int set_up(unsigned n_reads, std::byte*, size_t) {
    n_reads_ = n_reads;
    return setup_error;
  }
  void tear_down() {}

  void read(int fd, std::byte* to, size_t length, uint64_t offset, uint64_t data) {
    if (flying_.size() + complete_.size() == n_reads_) sync::fail_schedule("more reads than slots");
    flying_.push_back({fd, to, length, offset, data});
    if (reads_until_broken > 0) --reads_until_broken;
  }

  int submit_and_wait() {
    if (reads_until_broken == 0) {
      if (sync::chance(0.01)) complete_some();
      return EBADF;
    }
    sync::Lock lock(mutex_);
    if (sync::chance(0.05)) return 0;  // a signal
    if (sync::chance(0.02)) return EAGAIN;
    while (!woken_ && complete_.empty()) {
      if (flying_.empty()) {
        changed_.wait(lock);
      } else {
        changed_.wait_for(lock, std::chrono::microseconds(100));
        complete_some();
      }
    }
    woken_ = false;
    return 0;
  }

  bool take(uint64_t* data, int* result) {
    if (complete_.empty()) return false;
    *data = complete_.back().data;
    *result = complete_.back().result;
    complete_.pop_back();
    return true;
  }

  void wake() {
    {
      sync::Lock lock(mutex_);
      woken_ = true;
    }
    changed_.notify_all();
  }

 private:
  struct Flying {
    int fd;
    std::byte* to;
    size_t length;
    uint64_t offset, data;
  };
  struct Complete {
    uint64_t data;
    int result;
  };

  void complete_some() {
    for (uint64_t n = sync::choose(flying_.size() + 1); n > 0; --n) {
      const size_t i = sync::choose(flying_.size());
      const Flying read = flying_[i];
      flying_.erase(flying_.begin() + static_cast<ptrdiff_t>(i));
      int result;
      if (sync::chance(0.05)) {
        result = sync::chance(0.5) ? -EINTR : -EAGAIN;
      } else {
        const size_t length = sync::chance(0.1) ? 1 + sync::choose(read.length) : read.length;
        const ssize_t got = pread(read.fd, read.to, length, static_cast<off_t>(read.offset));
        result = got < 0 ? -errno : static_cast<int>(got);
      }
      complete_.push_back({read.data, result});
    }
  }

  sync::Mutex mutex_;
  sync::CondVar changed_;
  bool woken_ = false;
  size_t n_reads_ = 0;
  std::vector<Flying> flying_;  // these two: the reader's thread alone
  std::vector<Complete> complete_;
};

}  // namespace edge_rt
