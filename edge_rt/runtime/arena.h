// The one region of memory that weights, KV cache, activations and staging buffers live in.
#pragma once

#include <cstddef>

namespace edge_rt {

class Arena {
 public:
  // The first `sparse` bytes are written to here and there: they get small pages only, so that they
  // hold what was written and no huge page is made for a few bytes. Throws std::bad_alloc.
  explicit Arena(size_t bytes, size_t sparse = 0);
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  std::byte* data() const { return data_; }  // page-aligned; moves on resize
  size_t size() const { return size_; }

  // Keeps the first `kept` bytes; everything behind them becomes zero and holds no memory until it
  // is written. REQUIRES: nobody uses the arena meanwhile.
  void resize(size_t bytes, size_t kept);

 private:
  void advise();
  const int owner_;  // process; a forked child has no such mapping
  std::byte* data_;
  size_t size_;
  const size_t sparse_;
};

}  // namespace edge_rt
