// io_uring: one thread submits, waits and hands over, many reads are in flight. Compiled to "there
// is none" where liburing was missing at build time.
#include "flash_io/reader.h"

#ifdef EDGE_RT_HAVE_URING

#include <chrono>
#include <new>
#include <optional>
#include <string>
#include <system_error>
#include <vector>

#include "flash_io/latency.h"
#include "flash_io/request_queue.h"
#include "flash_io/sync.h"
#include "flash_io/transfer.h"
#include "flash_io/uring.h"

namespace edge_rt {
namespace {

constexpr size_t kStackBytes = 128 * 1024;  // stacks count against the budget
constexpr int kMaxFailures = 1000;          // of submitting in a row: more than a second
constexpr auto kRetryInterval = std::chrono::milliseconds(1);

class UringReader final : public Reader {
 public:
  UringReader(const File& file, int depth, std::byte* memory, size_t bytes)
      : file_(file), slots_(depth), memory_(memory), bytes_(bytes) {
    try {
      thread_.emplace(kStackBytes, [this] { work(); });
    } catch (const std::system_error& problem) {
      throw IoError::of(problem.code().value(), "cannot set up an io_uring");
    }
    sync::Lock lock(mutex_);
    changed_.wait(lock, [this] { return started_; });
    lock.unlock();
    if (setup_error_ == 0) return;
    thread_->join();
    throw IoError::of(setup_error_, "cannot set up an io_uring");
  }

  ~UringReader() override {
    {
      sync::Lock lock(mutex_);
      stop_ = true;
      wake();
    }
    thread_->join();
  }

  void submit(const ReadRequest& request, bool urgent) override {
    sync::Lock lock(mutex_);
    queue_.push(request, urgent);
    if (asleep_ && n_flying_ < slots_.size()) wake();
  }

  void drain() override {
    sync::Lock lock(mutex_);
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
    ring_.wake();
    changed_.notify_all();  // where there is no ring any more
  }

  void work() {
    ask_for_short_slices();
    setup_error_ = ring_.set_up(static_cast<unsigned>(slots_.size()), memory_, bytes_);
    {
      sync::Lock lock(mutex_);
      started_ = true;
      changed_.notify_all();  // under the lock: the constructor may be over at once
    }
    if (setup_error_ != 0) return;
    for (size_t i = slots_.size(); i > 0; --i) free_.push_back(i - 1);
    while (begin_queued()) {
      if (broken_ != 0) {  // what is queued was answered; wait for more without the ring
        sync::Lock lock(mutex_);
        changed_.wait(lock, [this] { return !asleep_; });
        continue;
      }
      const int error = ring_.submit_and_wait();
      {
        sync::Lock lock(mutex_);
        asleep_ = false;
        if (error != 0) changed_.wait_for(lock, kRetryInterval);  // memory may come free
      }
      failures_ = error == 0 ? 0 : failures_ + 1;
      if (failures_ > kMaxFailures) {
        break_down(error);
      } else {
        collect();
      }
    }
    ring_.tear_down();
  }

  // Starts what is queued while there are free slots. False: it is time to end.
  bool begin_queued() {
    for (;;) {
      size_t index;
      {
        sync::Lock lock(mutex_);
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
    uint64_t index;
    int result;
    while (ring_.take(&index, &result))
      step(index, [&](Slot& slot) { slot.transfer->take(result); });
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
        if (!ask->answer) return ring_.read(ask->fd, ask->to, ask->length, ask->offset, index);
        slot.transfer->take(*ask->answer);
      }
    } catch (const IoError& problem) {
      error = problem.error();
      reason = problem.what();
    } catch (const std::bad_alloc&) {
      error = ENOMEM;
      reason = "out of memory";  // short enough for no allocation
    }
    slot.transfer.reset();
    const ReadRequest request = slot.request;
    request.done(request.context, request.tag, error, reason.c_str());
    sync::Lock lock(mutex_);
    free_.push_back(index);
    if (--n_flying_ == 0 && queue_.empty()) changed_.notify_all();
  }

  // The ring itself fails, which no kernel is known to do: every read of this reader is an error
  // from now on, those in flight included, so that nothing is made of what they may still bring.
  // Into their memory they may still bring it: nothing tells when.
  void break_down(int error) {
    broken_ = error;
    for (size_t index = 0; index < slots_.size(); ++index)
      if (slots_[index].transfer) step(index, [](Slot&) {});
  }

  const File& file_;
  std::vector<Slot> slots_;
  std::byte* const memory_;
  const size_t bytes_;
  Uring ring_;
  int failures_ = 0, broken_ = 0;  // in a row; the errno of a ring that is given up
  std::optional<sync::Thread> thread_;

  sync::Mutex mutex_;
  sync::CondVar changed_;
  RequestQueue queue_;
  std::vector<size_t> free_;
  size_t n_flying_ = 0;
  bool asleep_ = false, stop_ = false, started_ = false;
  int setup_error_ = 0;
};

}  // namespace

std::unique_ptr<Reader> make_uring_reader(const File& file, int depth, std::byte* memory,
                                          size_t bytes, std::string* why) {
  if (!file.uring()) {
    *why = file.path() + " lies on a FUSE file system, which io_uring may read wrongly";
    return nullptr;
  }
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
