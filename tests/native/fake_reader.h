// A reader without a drive: its own thread finishes requests in random order, with random delays.
#pragma once

#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "flash_io/reader.h"
#include "tests/native/check.h"
#include "tests/native/temp_file.h"

namespace edge_rt::test {

class FakeReader final : public Reader {
 public:
  explicit FakeReader(uint64_t salt) : random_(salt), thread_([this] { work(); }) {}
  ~FakeReader() override {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stop_ = true;
      held_ = false;
    }
    changed_.notify_all();
    thread_.join();
  }

  void submit(const ReadRequest& request, bool) override {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      queue_.push_back(request);
      ++requests_;
      bytes_ += request.length;
    }
    changed_.notify_all();
  }
  void drain() override {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this] { return queue_.empty() && !busy_; });
  }
  const char* name() const override { return "fake"; }

  void hold(bool held) {  // true: nothing completes until false
    {
      std::lock_guard<std::mutex> lock(mutex_);
      held_ = held;
    }
    changed_.notify_all();
  }
  void set_failures(double probability) {
    std::lock_guard<std::mutex> lock(mutex_);
    failures_ = probability;
  }
  uint64_t requests() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return requests_;
  }
  uint64_t bytes() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return bytes_;
  }

 private:
  void work() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      changed_.wait(lock, [this] { return stop_ || (!held_ && !queue_.empty()); });
      if (queue_.empty()) return;
      const size_t i = random_.between(0, queue_.size() - 1);
      const ReadRequest request = queue_[i];
      queue_.erase(queue_.begin() + i);
      const bool fails = random_.chance(failures_);
      const bool slow = random_.chance(0.03);
      busy_ = true;
      lock.unlock();
      if (slow) std::this_thread::sleep_for(std::chrono::microseconds(100));
      // A failed read may leave anything behind.
      for (size_t k = 0; k < request.length; ++k)
        request.destination[k] = static_cast<std::byte>(fails ? 0 : byte_at(request.offset + k));
      request.done(request.context, request.tag, fails ? EIO : 0, fails ? "made to fail" : "");
      lock.lock();
      busy_ = false;
      changed_.notify_all();
    }
  }

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  Random random_;
  std::vector<ReadRequest> queue_;
  uint64_t requests_ = 0, bytes_ = 0;
  double failures_ = 0;
  bool held_ = false, busy_ = false, stop_ = false;
  std::thread thread_;  // last: it uses everything above
};

}  // namespace edge_rt::test
