#include <pthread.h>

#include <condition_variable>
#include <mutex>
#include <vector>

#include "flash_io/request_queue.h"

namespace edge_rt {
namespace {

constexpr size_t kStackBytes = 128 * 1024;  // pread needs little; stacks count against the budget

class PreadReader final : public Reader {
 public:
  PreadReader(const File& file, int n_threads) : file_(file) {
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, kStackBytes);
    for (int i = 0; i < n_threads; ++i) {
      pthread_t thread;
      const int error = pthread_create(
          &thread, &attributes,
          [](void* self) -> void* {
            static_cast<PreadReader*>(self)->work();
            return nullptr;
          },
          this);
      if (error == 0) {
        threads_.push_back(thread);
      } else if (threads_.empty()) {
        pthread_attr_destroy(&attributes);
        throw IoError::of(error, "cannot start a read thread");
      }
    }
    pthread_attr_destroy(&attributes);
  }

  ~PreadReader() override {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stop_ = true;
    }
    work_ready_.notify_all();
    for (pthread_t thread : threads_) pthread_join(thread, nullptr);
  }

  void submit(const ReadRequest& request, bool urgent) override {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      queue_.push(request, urgent);
    }
    work_ready_.notify_one();
  }

  void drain() override {
    std::unique_lock<std::mutex> lock(mutex_);
    idle_.wait(lock, [this] { return queue_.empty() && n_running_ == 0; });
  }

  const char* name() const override { return "pread"; }

 private:
  void work() {
    std::unique_lock<std::mutex> lock(mutex_);
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
      }
      request.done(request.context, request.tag, error, reason.c_str());
      lock.lock();
      if (--n_running_ == 0 && queue_.empty()) idle_.notify_all();
    }
  }

  const File& file_;
  std::mutex mutex_;
  std::condition_variable work_ready_, idle_;
  RequestQueue queue_;
  int n_running_ = 0;
  bool stop_ = false;
  std::vector<pthread_t> threads_;
};

}  // namespace

std::unique_ptr<Reader> make_pread_reader(const File& file, int n_threads) {
  return std::make_unique<PreadReader>(file, n_threads);
}

}  // namespace edge_rt
