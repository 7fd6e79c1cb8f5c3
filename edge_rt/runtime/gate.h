// Who may use an engine: one request at a time.
#pragma once

#include <memory>

#include "edge_rt/runtime/runtime.h"

namespace edge_rt {

// The right to use an engine, until release() or its end. An object of C++, because a signal may
// raise between any two steps of Python: wherever that is, this one is dropped and the engine is
// free again. Under the GIL.
class Hold {
 public:
  explicit Hold(std::shared_ptr<bool> busy) : busy_(std::move(busy)) { *busy_ = true; }
  ~Hold() { release(); }
  Hold(const Hold&) = delete;
  Hold& operator=(const Hold&) = delete;

  void release() {
    if (busy_) *busy_ = false;
    busy_.reset();
  }

 private:
  std::shared_ptr<bool> busy_;
};

class Gate {
 public:
  std::unique_ptr<Hold> enter() {  // throws UseError
    if (*busy_) throw UseError("the engine is busy with another request");
    return std::make_unique<Hold>(busy_);
  }

 private:
  std::shared_ptr<bool> busy_ = std::make_shared<bool>(false);
};

}  // namespace edge_rt
