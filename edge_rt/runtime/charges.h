// What an engine's callers hold of its budget besides the plan: logits, NumPy, templates.
#pragma once

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <utility>

namespace edge_rt {

// Bytes that count until release() or its end, which may come after the engine's. An object of C++,
// because Python loses what a signal handler raises while memory is freed. Under the GIL.
class Charge {
 public:
  Charge(std::shared_ptr<int64_t> held, int64_t n_bytes)
      : held_(std::move(held)), n_bytes_(n_bytes) {
    *held_ += n_bytes_;
  }
  ~Charge() { release(); }
  Charge(const Charge&) = delete;
  Charge& operator=(const Charge&) = delete;

  int64_t n_bytes() const { return n_bytes_; }

  void release() { *held_ -= std::exchange(n_bytes_, 0); }

  // A part of it, from now on a charge of its own.
  std::unique_ptr<Charge> split(int64_t n_bytes) {
    if (n_bytes < 0 || n_bytes > n_bytes_) throw std::invalid_argument("not a part of the charge");
    auto part = std::make_unique<Charge>(held_, n_bytes);
    *held_ -= n_bytes, n_bytes_ -= n_bytes;
    return part;
  }

 private:
  std::shared_ptr<int64_t> held_;  // by all charges of an engine
  int64_t n_bytes_;
};

class Charges {
 public:
  std::unique_ptr<Charge> add(int64_t n_bytes) { return std::make_unique<Charge>(held_, n_bytes); }
  int64_t held() const { return *held_; }

 private:
  std::shared_ptr<int64_t> held_ = std::make_shared<int64_t>(0);
};

}  // namespace edge_rt
