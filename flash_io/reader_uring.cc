// io_uring: one thread submits, waits and hands over, many reads are in flight. Compiled to "there
// is none" where liburing was missing at build time.
#include "flash_io/reader.h"

#ifdef EDGE_RT_HAVE_URING

#include <liburing.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "flash_io/request_queue.h"
#include "flash_io/transfer.h"

namespace edge_rt {
namespace {

constexpr size_t kStackBytes = 128 * 1024;  // stacks count against the budget
constexpr uint64_t kWake = UINT64_MAX;      // user data of the read of the eventfd
constexpr int kMaxFailures = 1000;          // of submitting in a row: more than a second

class UringReader final : public Reader {
 public:
  UringReader(const File& file, int depth, std::byte* memory, size_t bytes)
      : file_(file), slots_(depth), memory_(memory), bytes_(bytes) {
    event_ = eventfd(0, EFD_CLOEXEC);
    if (event_ < 0) throw IoError::of(errno, "cannot make an eventfd");
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, kStackBytes);
    int error = pthread_create(
        &thread_, &attributes,
        [](void* self) -> void* {
          static_cast<UringReader*>(self)->work();
          return nullptr;
        },
        this);
    pthread_attr_destroy(&attributes);
    if (error == 0) {
      std::unique_lock<std::mutex> lock(mutex_);
      changed_.wait(lock, [this] { return started_; });
      error = setup_error_;
      lock.unlock();
      if (error != 0) pthread_join(thread_, nullptr);
    }
    if (error != 0) {
      close(event_);
      throw IoError::of(error, "cannot set up an io_uring");
    }
  }

  ~UringReader() override {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stop_ = true;
      wake();
    }
    pthread_join(thread_, nullptr);
    close(event_);
  }

  void submit(const ReadRequest& request, bool urgent) override {
    std::lock_guard<std::mutex> lock(mutex_);
    queue_.push(request, urgent);
    if (asleep_ && n_flying_ < slots_.size()) wake();
  }

  void drain() override {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this] { return queue_.empty() && n_flying_ == 0; });
  }

  const char* name() const override { return "uring"; }

 private:
  struct Slot {
    ReadRequest request;
    std::optional<Transfer> transfer;  // set while the slot is in use
  };

  void wake() {  // with mutex_ held
    asleep_ = false;
    const uint64_t one = 1;
    // It fails only if the counter is full: then the thread is awake anyway.
    if (write(event_, &one, sizeof one) < 0) return;
  }

  // The ring belongs to the thread that uses it: the kernel then runs completions when that thread
  // asks for them, and disturbs no compute thread.
  int set_up() {
    const unsigned entries = static_cast<unsigned>(slots_.size()) + 1;
    int error = -EINVAL;
    for (const unsigned flags :
         {IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN, 0u}) {  // newest kernels first
      io_uring_params params{};
      params.flags = flags;
      error = io_uring_queue_init_params(entries, &ring_, &params);
      if (error != -EINVAL) break;
    }
    if (error != 0) return -error;
    io_uring_ring_dontfork(&ring_);
    if (bytes_ != 0) {
      const iovec region = {memory_, bytes_};
      registered_ = io_uring_register_buffers(&ring_, &region, 1) == 0;
    }
    return 0;
  }

  void work() {
    setup_error_ = set_up();
    {
      std::lock_guard<std::mutex> lock(mutex_);
      started_ = true;
    }
    changed_.notify_all();
    if (setup_error_ != 0) return;
    for (size_t i = slots_.size(); i > 0; --i) free_.push_back(i - 1);
    while (begin_queued()) {
      if (broken_ != 0) {  // what is queued was answered; wait for more without the ring
        if (read(event_, &event_value_, sizeof event_value_) < 0) continue;
        continue;
      }
      if (!wake_armed_) {
        io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
        io_uring_prep_read(sqe, event_, &event_value_, sizeof event_value_, 0);
        io_uring_sqe_set_data64(sqe, kWake);
        wake_armed_ = true;
      }
      const int submitted = io_uring_submit_and_wait(&ring_, 1);
      {
        std::lock_guard<std::mutex> lock(mutex_);
        asleep_ = false;
      }
      if (submitted < 0 && submitted != -EINTR) {
        std::this_thread::sleep_for(std::chrono::milliseconds(1));  // memory may come free
        if (++failures_ > kMaxFailures) break_down(-submitted);
      } else {
        failures_ = 0;
      }
      collect();
    }
    io_uring_queue_exit(&ring_);  // ends the read of the eventfd, too
  }

  // Starts what is queued while there are free slots. False: it is time to end.
  bool begin_queued() {
    for (;;) {
      size_t index;
      {
        std::lock_guard<std::mutex> lock(mutex_);
        if (queue_.empty() || free_.empty()) {
          asleep_ = true;
          return !stop_ || n_flying_ != 0;
        }
        index = free_.back();
        free_.pop_back();
        slots_[index].request = queue_.pop();
        ++n_flying_;
      }
      const ReadRequest& r = slots_[index].request;
      step(index, [&](Slot& slot) {
        slot.transfer.emplace(file_, r.offset, r.length, r.needed, r.destination);
      });
    }
  }

  void collect() {
    io_uring_cqe* cqe;
    while (io_uring_peek_cqe(&ring_, &cqe) == 0) {
      const uint64_t data = cqe->user_data;
      const int result = cqe->res;
      io_uring_cqe_seen(&ring_, cqe);
      if (data == kWake) {
        wake_armed_ = false;
      } else {
        step(data, [&](Slot& slot) { slot.transfer->take(result); });
      }
    }
  }

  // Runs `action` on a slot, then asks the kernel for what its transfer wants next, or ends it.
  template <typename Action>
  void step(size_t index, const Action& action) {
    Slot& slot = slots_[index];
    int error = 0;
    std::string reason;
    try {
      if (broken_ != 0) throw IoError::of(broken_, "the io_uring failed");
      action(slot);
      while (const auto ask = slot.transfer->next()) {
        if (!ask->answer) return ask_kernel(*ask, index);
        slot.transfer->take(*ask->answer);
      }
    } catch (const IoError& problem) {
      error = problem.error();
      reason = problem.what();
    }
    slot.transfer.reset();
    const ReadRequest request = slot.request;
    request.done(request.context, request.tag, error, reason.c_str());
    std::lock_guard<std::mutex> lock(mutex_);
    free_.push_back(index);
    if (--n_flying_ == 0 && queue_.empty()) changed_.notify_all();
  }

  void ask_kernel(const Transfer::Ask& ask, size_t index) {
    // There is room: a slot has one entry at a time, and one more is for the eventfd.
    io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
    const auto length = static_cast<unsigned>(std::min<size_t>(ask.length, 1u << 30));
    const bool in_region = registered_ && ask.to >= memory_ && ask.to + length <= memory_ + bytes_;
    if (in_region) {
      io_uring_prep_read_fixed(sqe, ask.fd, ask.to, length, ask.offset, 0);
    } else {
      io_uring_prep_read(sqe, ask.fd, ask.to, length, ask.offset);
    }
    io_uring_sqe_set_data64(sqe, index);
  }

  // The ring itself fails, which no kernel is known to do: every read of this reader is an error
  // from now on, those in flight included, so that nothing is made of what they may still bring.
  void break_down(int error) {
    broken_ = error;
    for (size_t index = 0; index < slots_.size(); ++index)
      if (slots_[index].transfer) step(index, [](Slot&) {});
  }

  const File& file_;
  std::vector<Slot> slots_;
  std::byte* const memory_;
  const size_t bytes_;
  io_uring ring_{};
  bool registered_ = false, wake_armed_ = false;
  uint64_t event_value_ = 0;
  int failures_ = 0, broken_ = 0;  // in a row; the errno of a ring that is given up
  int event_ = -1;
  pthread_t thread_{};

  std::mutex mutex_;
  std::condition_variable changed_;
  RequestQueue queue_;
  std::vector<size_t> free_;
  size_t n_flying_ = 0;
  bool asleep_ = false, stop_ = false, started_ = false;
  int setup_error_ = 0;
};

}  // namespace

std::unique_ptr<Reader> make_uring_reader(const File& file, int depth, std::byte* memory,
                                          size_t bytes, std::string* why) {
  try {
    return std::make_unique<UringReader>(file, depth, memory, bytes);
  } catch (const IoError& error) {
    *why = error.what();
    return nullptr;
  }
}

}  // namespace edge_rt

#else

namespace edge_rt {

std::unique_ptr<Reader> make_uring_reader(const File&, int, std::byte*, size_t, std::string* why) {
  *why = "this build has no io_uring (liburing was missing)";
  return nullptr;
}

}  // namespace edge_rt

#endif
