#include <new>
#include <string>
#include <system_error>
#include <vector>

#include "flash_io/latency.h"
#include "flash_io/request_queue.h"
#include "flash_io/sync.h"

namespace edge_rt {
namespace {

constexpr size_t kStackBytes = 128 * 1024;  // pread needs little; stacks count against the budget

class PreadReader final : public Reader {
 public:
  PreadReader(const File& file, int n_threads) : file_(file) {
    try {
      for (int i = 0; i < n_threads; ++i) threads_.emplace_back(kStackBytes, [this] { work(); });
    } catch (const std::system_error& error) {
      if (threads_.empty()) throw IoError::of(error.code().value(), "cannot start a read thread");
    }
  }

  ~PreadReader() override {
    {
      sync::Lock lock(mutex_);
      stop_ = true;
    }
    work_ready_.notify_all();
    for (sync::Thread& thread : threads_) thread.join();
  }

  void submit(const ReadRequest& request, bool urgent) override {
    {
      sync::Lock lock(mutex_);
      queue_.push(request, urgent);
    }
    work_ready_.notify_one();
  }

  void drain() override {
    sync::Lock lock(mutex_);
    idle_.wait(lock, [this] { return queue_.empty() && n_running_ == 0; });
  }

  const char* name() const override { return "pread"; }

 private:
  void work() {
    ask_for_short_slices();
    sync::Lock lock(mutex_);
    for (;;) {
      work_ready_.wait(lock, [this] { return stop_ || !queue_.empty(); });
      if (queue_.empty()) return;  // only when stopping: what was queued is still read
      const ReadRequest request = queue_.pop();
      ++n_running_;
      lock.unlock();
      int error = 0;
      std::string reason;
      try {
        file_.read(request.offset, request.length, request.needed, request.destination);
      } catch (const IoError& problem) {
        error = problem.error();
        reason = problem.what();
      } catch (const std::bad_alloc&) {
        error = ENOMEM;
        reason = "out of memory";  // short enough for no allocation
      }
      request.done(request.context, request.tag, error, reason.c_str());
      lock.lock();
      if (--n_running_ == 0 && queue_.empty()) idle_.notify_all();
    }
  }

  const File& file_;
  sync::Mutex mutex_;
  sync::CondVar work_ready_, idle_;
  RequestQueue queue_;
  int n_running_ = 0;
  bool stop_ = false;
  std::vector<sync::Thread> threads_;
};

}  // namespace

std::unique_ptr<Reader> make_pread_reader(const File& file, int n_threads) {
  return std::make_unique<PreadReader>(file, n_threads);
}

}  // namespace edge_rt
