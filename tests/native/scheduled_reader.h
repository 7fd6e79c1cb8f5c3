// A reader without a drive for tests under the scheduler: its threads answer in the order that the
// seed chooses, and a ledger fails the test if memory is handed out twice.
#pragma once

#include <cerrno>
#include <cstring>
#include <vector>

#include "flash_io/reader.h"
#include "flash_io/sync.h"
#include "tests/native/check.h"

namespace edge_rt::test {

// What its readers do; outlives them.
struct ScheduledDrive {
  const std::vector<uint8_t>& content;  // of the file; zeros behind it
  sync::Mutex mutex{};
  sync::CondVar changed{};
  bool held = false;
  int skip = 0, count = 0;  // so many reads pass, then so many fail
  int before_hold = -1;     // so many are answered before it holds by itself; -1: never

  void hold(bool is_held) {  // true: nothing is answered until false
    {
      sync::Lock lock(mutex);
      held = is_held;
      before_hold = -1;
    }
    changed.notify_all();
  }
  void hold_after(int n) { before_hold = n; }
  void fail_next(int n_pass, int n_fail) { skip = n_pass, count = n_fail; }
};

class ScheduledReader final : public Reader {
 public:
  ScheduledReader(ScheduledDrive& drive, int n_threads)
      : drive_(drive), mutex_(drive.mutex), changed_(drive.changed) {
    for (int i = 0; i < n_threads; ++i) threads_.emplace_back(0, [this] { work(); });
  }
  ~ScheduledReader() override {
    {
      sync::Lock lock(mutex_);
      stop_ = true;
    }
    changed_.notify_all();
    for (sync::Thread& thread : threads_) thread.join();
    CHECK(claimed_.empty());
  }

  void submit(const ReadRequest& request, bool) override {
    claim(request.destination, request.length);
    {
      sync::Lock lock(mutex_);
      queue_.push_back(request);
    }
    changed_.notify_all();
  }
  void drain() override {
    sync::Lock lock(mutex_);
    changed_.wait(lock, [this] { return queue_.empty() && n_busy_ == 0; });
  }
  const char* name() const override { return "scheduled"; }

  // Memory that nobody else may be given meanwhile.
  void claim(const std::byte* begin, size_t length) {
    for (const auto& [other, bytes] : claimed_)
      CHECK(begin + length <= other || other + bytes <= begin);
    claimed_.push_back({begin, length});
  }
  void give_back(const std::byte* begin) {
    for (size_t i = 0; i < claimed_.size(); ++i)
      if (claimed_[i].first == begin) return void(claimed_.erase(claimed_.begin() + i));
    CHECK(false && "what is given back was claimed");
  }

 private:
  void work() {
    sync::Lock lock(mutex_);
    for (;;) {
      changed_.wait(
          lock, [this] { return (stop_ && queue_.empty()) || (!drive_.held && !queue_.empty()); });
      if (queue_.empty()) return;
      if (drive_.before_hold >= 0 && drive_.before_hold-- == 0) {
        drive_.held = true;
        continue;
      }
      const size_t i = sync::choose(queue_.size());
      const ReadRequest request = queue_[i];
      queue_.erase(queue_.begin() + static_cast<ptrdiff_t>(i));
      ++n_busy_;
      const bool fails = drive_.count > 0 && drive_.skip-- <= 0;
      if (fails) --drive_.count;
      lock.unlock();
      const size_t half = request.length / 2;
      fill(request, 0, fails ? 0 : half);
      sync::step();
      fill(request, half, fails ? half : request.length);
      give_back(request.destination);
      request.done(request.context, request.tag, fails ? EIO : 0, fails ? "made to fail" : "");
      lock.lock();
      --n_busy_;
      changed_.notify_all();
    }
  }
  void fill(const ReadRequest& request, size_t from, size_t to) {
    for (size_t k = from; k < to; ++k) {
      const uint64_t at = request.offset + k;
      request.destination[k] =
          static_cast<std::byte>(at < drive_.content.size() ? drive_.content[at] : 0);
    }
  }

  ScheduledDrive& drive_;
  sync::Mutex& mutex_;
  sync::CondVar& changed_;
  std::vector<ReadRequest> queue_;
  std::vector<std::pair<const std::byte*, size_t>> claimed_;
  int n_busy_ = 0;
  bool stop_ = false;
  std::vector<sync::Thread> threads_;
};

}  // namespace edge_rt::test
