#include "flash_io/faults.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <thread>
#include <utility>

namespace edge_rt {
namespace {

uint64_t next_random(uint64_t* state) {  // splitmix64
  uint64_t z = (*state += 0x9e3779b97f4a7c15u);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

bool ends_with(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

}  // namespace

void Faults::add(Rule rule) {
  std::lock_guard<std::mutex> lock(mutex_);
  rules_.push_back(std::move(rule));
}

void Faults::set_chaos(double probability, uint64_t seed) {
  std::lock_guard<std::mutex> lock(mutex_);
  chaos_ = probability;
  state_ = seed;
}

void Faults::set_reorder(uint64_t seed) {
  std::lock_guard<std::mutex> lock(mutex_);
  reorder_ = true;
  order_seed_ = seed;
}

bool Faults::reorders(uint64_t* seed) const {
  std::lock_guard<std::mutex> lock(mutex_);
  *seed = order_seed_;
  return reorder_;
}

void Faults::clear() {
  std::lock_guard<std::mutex> lock(mutex_);
  rules_.clear();
  chaos_ = 0;
  reorder_ = false;
}

uint64_t Faults::reads() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return reads_;
}

uint64_t Faults::hits() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return hits_;
}

uint64_t Faults::bytes() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return bytes_;
}

uint64_t Faults::farthest() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return farthest_;
}

void Faults::meet(const std::string& path, Transfer::Ask* ask) {
  int64_t delay_us = 0;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    ++reads_;
    bytes_ += ask->length;
    farthest_ = std::max<uint64_t>(farthest_, ask->offset + ask->length);
    const auto hit = [&](Kind kind, int64_t value) {
      ++hits_;
      switch (kind) {
        case Kind::kError:
          ask->answer = -static_cast<ssize_t>(value);
          break;
        case Kind::kShort:
          if (static_cast<uint64_t>(value) < ask->length) ask->length = static_cast<size_t>(value);
          break;
        case Kind::kEnd:
          ask->answer = 0;
          break;
        case Kind::kDelay:
          delay_us += value;
          break;
      }
    };
    for (Rule& rule : rules_) {
      if (ask->offset >= rule.end || ask->offset + ask->length <= rule.begin) continue;
      if (!ends_with(path, rule.path) || rule.count == 0) continue;
      if (rule.skip > 0) {
        --rule.skip;
        continue;
      }
      --rule.count;
      hit(rule.kind, rule.kind == Kind::kDelay ? rule.value * 1000 : rule.value);
    }
    const uint64_t dice = chaos_ > 0 ? next_random(&state_) : 0;
    if (chaos_ > 0 && static_cast<double>(dice >> 11) * 0x1p-53 < chaos_) {
      const uint64_t what = next_random(&state_);
      const int64_t size = static_cast<int64_t>(what >> 8) & 0xffff;
      switch (what % 4) {
        case 0:
          hit(Kind::kError, EINTR);
          break;
        case 1:
          hit(Kind::kError, EAGAIN);
          break;
        case 2:
          hit(Kind::kShort, 1 + size);
          break;
        case 3:
          hit(Kind::kDelay, size % 2000);
          break;
      }
    }
  }
  if (delay_us > 0) std::this_thread::sleep_for(std::chrono::microseconds(delay_us));
}

namespace {

class ReorderingReader final : public Reader {
 public:
  ReorderingReader(std::unique_ptr<Reader> inner, uint64_t seed)
      : state_(seed), inner_(std::move(inner)), thread_([this] { work(); }) {}

  ~ReorderingReader() override {
    drain();
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stop_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }

  void submit(const ReadRequest& request, bool urgent) override {
    auto* held = new Held{this, request, 0, {}};
    {
      std::lock_guard<std::mutex> lock(mutex_);
      ++pending_;
    }
    ReadRequest changed = request;
    changed.context = held;
    changed.done = [](void* context, uint64_t, int error, const char* reason) {
      auto* h = static_cast<Held*>(context);
      h->error = error;
      h->reason = reason;
      ReorderingReader* self = h->self;
      std::lock_guard<std::mutex> lock(self->mutex_);
      self->arrived_.emplace_back(h);
      self->changed_.notify_all();
    };
    inner_->submit(changed, urgent);
  }

  void drain() override {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this] { return pending_ == 0; });
  }

  const char* name() const override { return inner_->name(); }

 private:
  struct Held {
    ReorderingReader* self;
    ReadRequest request;
    int error;
    std::string reason;
  };

  void work() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      changed_.wait(lock, [this] { return stop_ || !arrived_.empty(); });
      if (arrived_.empty()) return;
      // Let a few come together, so that there is something to reorder.
      lock.unlock();
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      lock.lock();
      const size_t i = next_random(&state_) % arrived_.size();
      const std::unique_ptr<Held> held = std::move(arrived_[i]);
      arrived_.erase(arrived_.begin() + static_cast<ptrdiff_t>(i));
      lock.unlock();
      const ReadRequest& r = held->request;
      r.done(r.context, r.tag, held->error, held->reason.c_str());
      lock.lock();
      --pending_;
      changed_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::unique_ptr<Held>> arrived_;
  size_t pending_ = 0;
  bool stop_ = false;
  uint64_t state_;
  std::unique_ptr<Reader> inner_;
  std::thread thread_;  // last: it uses everything above
};

}  // namespace

std::unique_ptr<Reader> make_reordering_reader(std::unique_ptr<Reader> inner, uint64_t seed) {
  return std::make_unique<ReorderingReader>(std::move(inner), seed);
}

}  // namespace edge_rt
