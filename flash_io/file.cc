#include "flash_io/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace edge_rt {
namespace {

#ifndef STATX_DIOALIGN
#define STATX_DIOALIGN 0x00002000U
#endif

// The kernel's struct statx from stx_dio_mem_align on; older headers lack the fields.
constexpr size_t kDioMemAlignAt = 0x98, kDioOffsetAlignAt = 0x9c;

// Alignment that direct reads of `fd` need: 0 if the file system says that it has none, else what
// it says or, where it does not say, 4096.
size_t direct_alignment(int fd) {
  struct statx info = {};
  if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &info) == 0 &&
      (info.stx_mask & STATX_DIOALIGN)) {
    uint32_t memory, offset;
    std::memcpy(&memory, reinterpret_cast<const char*>(&info) + kDioMemAlignAt, sizeof memory);
    std::memcpy(&offset, reinterpret_cast<const char*>(&info) + kDioOffsetAlignAt, sizeof offset);
    const size_t largest = std::max(memory, offset);
    if (largest == 0) return 0;
    if ((largest & (largest - 1)) == 0 && largest <= 65536) return std::max<size_t>(largest, 512);
  }
  return 4096;
}

}  // namespace

File::File(const std::string& path, bool direct) : path_(path) {
  fd_ = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // a FIFO must not block us
  if (fd_ < 0) throw IoError(errno, "cannot open " + path);
  struct stat info;
  if (fstat(fd_, &info) != 0) {
    const int error = errno;
    close(fd_);
    throw IoError(error, "cannot stat " + path);
  }
  if (!S_ISREG(info.st_mode)) {
    close(fd_);
    throw IoError(EINVAL, path + " is not a regular file");
  }
  size_ = static_cast<uint64_t>(info.st_size);
  const size_t alignment = direct ? direct_alignment(fd_) : 0;
  if (alignment != 0) {
    const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECT);
    struct stat again;
    // The same file must answer: a rename between the two opens would mix two files.
    if (fd >= 0 && fstat(fd, &again) == 0 && again.st_ino == info.st_ino &&
        again.st_dev == info.st_dev) {
      close(fd_);
      fd_ = fd;
      direct_ = true;
      alignment_ = alignment;
    } else if (fd >= 0) {
      close(fd);
    }
  }
  if (!direct_) posix_fadvise(fd_, 0, 0, POSIX_FADV_RANDOM);  // no read-ahead into the page cache
}

File::~File() {
  if (fd_ >= 0) close(fd_);
}

AlignedExtent File::cover(uint64_t offset, size_t length) const {
  const uint64_t mask = alignment_ - 1;
  const uint64_t first = offset & ~mask;
  const uint64_t end = (offset + length + mask) & ~mask;
  return {first, static_cast<size_t>(end - first), static_cast<size_t>(offset - first)};
}

void File::read(uint64_t offset, size_t length, size_t needed, std::byte* destination) const {
  const auto shorter = [this](uint64_t end) {
    return IoError(
        EIO, path_ + " ends at byte " + std::to_string(end) + ": it became shorter while in use");
  };
  size_t done = 0;
  while (done < needed) {
    const ssize_t n =
        pread(fd_, destination + done, length - done, static_cast<off_t>(offset + done));
    if (n < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    if (n < 0)
      throw IoError(errno, "reading " + std::to_string(length - done) + " bytes at " +
                               std::to_string(offset + done) + " of " + path_);
    if (n == 0) throw shorter(offset + done);
    done += static_cast<size_t>(n);
    // Direct reads stop off the grid only at the end of the file.
    if (done < needed && direct_ && done % alignment_ != 0) throw shorter(offset + done);
  }
  if (!direct_)
    posix_fadvise(fd_, static_cast<off_t>(offset), static_cast<off_t>(length), POSIX_FADV_DONTNEED);
}

}  // namespace edge_rt
