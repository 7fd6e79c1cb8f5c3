#include "flash_io/transfer.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <thread>

#include "flash_io/faults.h"

namespace edge_rt {
namespace {

// Answers without a byte that are borne in a row. EAGAIN is waited for in between, about 0.5 s in
// all: longer than a queue is ever full, short enough to be told apart from a drive that hangs.
constexpr int kMaxTries = 24;
constexpr int kTriesAtOnce = 8;
constexpr auto kWait = std::chrono::milliseconds(32);

}  // namespace

Transfer::Transfer(const File& file, uint64_t offset, size_t length, size_t needed,
                   std::byte* destination)
    : faults_(file.faults_.get()), length_(length), needed_(needed), destination_(destination) {
  const size_t index = file.part_at(offset);
  const auto& placed = file.parts_[index];
  part_ = placed.part.get();
  if (index + 1 < file.parts_.size() && offset + length > file.parts_[index + 1].start)
    throw IoError(EINVAL, "a read of " + std::to_string(length) + " bytes at " +
                              std::to_string(offset) + " leaves " + part_->path());
  at_ = offset - placed.start;
}

std::string Transfer::doing() const {
  return "reading " + std::to_string(length_ - done_) + " bytes at " + std::to_string(at_ + done_) +
         " of " + part_->path();
}

std::optional<Transfer::Ask> Transfer::next() {
  if (done_ >= needed_) {
    if (done_ > 0 && !part_->direct())  // the page cache is somebody else's memory
      posix_fadvise(part_->fd(), static_cast<off_t>(at_), static_cast<off_t>(length_),
                    POSIX_FADV_DONTNEED);
    return std::nullopt;
  }
  if (wait_) std::this_thread::sleep_for(kWait);
  wait_ = false;
  asked_direct_ = part_->direct();
  Ask ask{part_->fd(), at_ + done_, length_ - done_, destination_ + done_, std::nullopt};
  if (faults_ != nullptr) faults_->meet(part_->path(), &ask);
  return ask;
}

void Transfer::take(ssize_t result) {
  if (result == -EINTR || result == -EAGAIN) {
    wait_ = result == -EAGAIN && tries_ >= kTriesAtOnce;
    return no_progress(static_cast<int>(-result));
  }
  if (result == -EINVAL && asked_direct_) {  // perhaps another read has given up already
    if (part_->direct()) part_->give_up_direct();
    return no_progress(EINVAL);
  }
  if (result < 0) throw IoError::of(static_cast<int>(-result), doing());
  if (result == 0) return no_progress(EIO);
  const size_t before = done_;
  done_ += std::min(static_cast<size_t>(result), length_ - done_);
  // Off the grid a direct read cannot go on: begin again at the unit that was cut.
  if (done_ < needed_ && asked_direct_) done_ -= done_ % part_->alignment();
  if (done_ <= before) {
    done_ = before;
    no_progress(EIO);
    if (part_->direct()) part_->give_up_direct();
    return;
  }
  tries_ = 0;
}

void Transfer::no_progress(int error) {
  const uint64_t size = part_->size_now();
  if (at_ + needed_ > size)
    throw IoError(EIO, part_->path() + " ends at byte " + std::to_string(size) +
                           ": it became shorter while in use");
  if (++tries_ < kMaxTries) return;
  throw IoError::of(error, doing() + " brought nothing " + std::to_string(tries_) + " times");
}

}  // namespace edge_rt
