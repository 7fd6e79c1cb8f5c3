// What the io_uring reader wants of the kernel: one queue of reads, and a way for other threads to
// end its wait. Compiled with EDGE_RT_SCHEDULE it is a drive that the deterministic scheduler
// plays.
#pragma once

#ifdef EDGE_RT_SCHEDULE
#include "tests/native/scheduled_uring.h"
#else

#include <liburing.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>

namespace edge_rt {

class Uring {
 public:
  Uring() : event_(eventfd(0, EFD_CLOEXEC)), error_(event_ < 0 ? errno : 0) {}
  ~Uring() {
    if (event_ >= 0) close(event_);
  }
  Uring(const Uring&) = delete;
  Uring& operator=(const Uring&) = delete;

  // By the thread that uses the queue. The kernel then runs completions when that thread asks for
  // them, and disturbs no compute thread. `memory`: where most reads go. Returns 0 or an errno.
  int set_up(unsigned n_reads, std::byte* memory, size_t bytes) {
    if (error_ != 0) return error_;
    io_uring_params params{};
    int error = -EINVAL;
    for (const unsigned flags :
         {IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN, 0u}) {  // newest kernels first
      params = {};
      params.flags = flags;
      error = io_uring_queue_init_params(n_reads + 1, &ring_, &params);  // and one for the eventfd
      if (error != -EINVAL) break;
    }
    if (error != 0) return -error;
    if (!(params.features & IORING_FEAT_RW_CUR_POS)) {  // Linux 5.6, as is IORING_OP_READ
      io_uring_queue_exit(&ring_);
      return ENOSYS;
    }
    io_uring_ring_dontfork(&ring_);
    if (bytes != 0) {
      const iovec region = {memory, bytes};
      if (io_uring_register_buffers(&ring_, &region, 1) == 0) memory_ = memory, bytes_ = bytes;
    }
    return 0;
  }

  void tear_down() { io_uring_queue_exit(&ring_); }  // ends the read of the eventfd, too

  // At most `n_reads` of them at one time.
  void read(int fd, std::byte* to, size_t n_bytes, uint64_t offset, uint64_t data) {
    io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
    const auto length = static_cast<unsigned>(std::min<size_t>(n_bytes, 1u << 30));
    if (bytes_ != 0 && to >= memory_ && to + length <= memory_ + bytes_) {
      io_uring_prep_read_fixed(sqe, fd, to, length, offset, 0);
    } else {
      io_uring_prep_read(sqe, fd, to, length, offset);
    }
    io_uring_sqe_set_data64(sqe, data);
    // The drive begins with these while the next are made: small reads at depth are 1.15 times as
    // many a second. What cannot be submitted now is submitted, or its error seen, by the wait.
    if (io_uring_sq_ready(&ring_) >= kBatch) io_uring_submit(&ring_);
  }

  // Until something is complete or wake() was called. Returns 0 or an errno.
  int submit_and_wait() {
    if (!armed_) {
      io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
      io_uring_prep_read(sqe, event_, &event_value_, sizeof event_value_, 0);
      io_uring_sqe_set_data64(sqe, kWake);
      armed_ = true;
    }
    const int submitted = io_uring_submit_and_wait(&ring_, 1);
    return submitted < 0 && submitted != -EINTR ? -submitted : 0;
  }

  // The next completed read: its `data`, and its bytes or a negative errno. False: none.
  bool take(uint64_t* data, int* result) {
    io_uring_cqe* cqe;
    while (io_uring_peek_cqe(&ring_, &cqe) == 0) {
      *data = cqe->user_data;
      *result = cqe->res;
      io_uring_cqe_seen(&ring_, cqe);
      if (*data != kWake) return true;
      armed_ = false;
    }
    return false;
  }

  // Any thread.
  void wake() {
    const uint64_t one = 1;
    // It fails only if the counter is full: then the thread is awake anyway.
    if (write(event_, &one, sizeof one) < 0) return;
  }

 private:
  static constexpr uint64_t kWake = UINT64_MAX;  // data of the read of the eventfd
  static constexpr unsigned kBatch = 4;
  const int event_, error_;
  io_uring ring_{};
  std::byte* memory_ = nullptr;  // registered
  size_t bytes_ = 0;
  bool armed_ = false;
  uint64_t event_value_ = 0;
};

}  // namespace edge_rt

#endif
