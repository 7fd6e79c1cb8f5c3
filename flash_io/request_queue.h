// Requests in the order in which they are to begin: urgent ones first. Not thread-safe.
#pragma once

#include <deque>

#include "flash_io/reader.h"

namespace edge_rt {

class RequestQueue {
 public:
  bool empty() const { return queue_.empty(); }

  void push(const ReadRequest& request, bool urgent) {
    if (urgent) {
      queue_.insert(queue_.begin() + n_urgent_++, request);
    } else {
      queue_.push_back(request);
    }
  }

  ReadRequest pop() {
    const ReadRequest request = queue_.front();
    queue_.pop_front();
    if (n_urgent_ > 0) --n_urgent_;
    return request;
  }

 private:
  std::deque<ReadRequest> queue_;
  std::ptrdiff_t n_urgent_ = 0;
};

}  // namespace edge_rt
