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

File::Descriptor::~Descriptor() {
  if (fd_ >= 0) close(fd_);
}

File::Part File::open_part(const std::string& path, bool direct) {
  // O_NONBLOCK: a FIFO must not block us.
  Descriptor fd(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (fd.get() < 0) throw IoError::of(errno, "cannot open " + path);
  struct stat info;
  if (fstat(fd.get(), &info) != 0) throw IoError::of(errno, "cannot stat " + path);
  if (!S_ISREG(info.st_mode)) throw IoError(EINVAL, path + " is not a regular file");
  const uint64_t size = static_cast<uint64_t>(info.st_size);
  const size_t alignment = direct ? direct_alignment(fd.get()) : 0;
  if (alignment != 0) {
    Descriptor again(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECT));
    struct stat same;
    // The same file must answer: a rename between the two opens would mix two files.
    if (again.get() >= 0 && fstat(again.get(), &same) == 0 && same.st_ino == info.st_ino &&
        same.st_dev == info.st_dev)
      return {path, std::move(again), true, alignment, 0, size};
  }
  posix_fadvise(fd.get(), 0, 0, POSIX_FADV_RANDOM);  // no read-ahead into the page cache
  return {path, std::move(fd), false, 4096, 0, size};
}

File::File(const std::vector<std::string>& paths, bool direct) {
  if (paths.empty()) throw IoError(EINVAL, "a model has at least one file");
  uint64_t start = 0;
  for (const std::string& path : paths) {
    parts_.push_back(open_part(path, direct));
    Part& part = parts_.back();
    part.start = start;
    start = (start + part.size + kPartAlignment - 1) / kPartAlignment * kPartAlignment;
    alignment_ = std::max(alignment_, part.alignment);
  }
}

bool File::direct() const {
  return std::all_of(parts_.begin(), parts_.end(), [](const Part& part) { return part.direct; });
}

size_t File::part_at(uint64_t offset) const {
  const auto after =
      std::upper_bound(parts_.begin() + 1, parts_.end(), offset,
                       [](uint64_t value, const Part& part) { return value < part.start; });
  return static_cast<size_t>(after - parts_.begin()) - 1;
}

AlignedExtent File::cover(uint64_t offset, size_t length) const {
  const uint64_t mask = alignment_ - 1;
  const uint64_t first = offset & ~mask;
  const uint64_t end = (offset + length + mask) & ~mask;
  const size_t next = part_at(offset) + 1;
  // The extent, too, ends where the next part begins or before: that is a multiple of any mask + 1.
  if (next < parts_.size() && offset + length > parts_[next].start)
    throw IoError(EINVAL, std::to_string(length) + " bytes at " + std::to_string(offset) +
                              " lie in " + parts_[next - 1].path + " and in the part after it");
  return {first, static_cast<size_t>(end - first), static_cast<size_t>(offset - first)};
}

void File::read(uint64_t offset, size_t length, size_t needed, std::byte* destination) const {
  const size_t index = part_at(offset);
  const Part& part = parts_[index];
  if (index + 1 < parts_.size() && offset + length > parts_[index + 1].start)
    throw IoError(EINVAL, "a read of " + std::to_string(length) + " bytes at " +
                              std::to_string(offset) + " leaves " + part.path);
  const uint64_t at = offset - part.start;  // in the part
  const auto shorter = [&part](uint64_t end) {
    return IoError(EIO, part.path + " ends at byte " + std::to_string(end) +
                            ": it became shorter while in use");
  };
  size_t done = 0;
  while (done < needed) {
    const ssize_t n =
        pread(part.fd.get(), destination + done, length - done, static_cast<off_t>(at + done));
    if (n < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    if (n < 0)
      throw IoError::of(errno, "reading " + std::to_string(length - done) + " bytes at " +
                                   std::to_string(at + done) + " of " + part.path);
    if (n == 0) throw shorter(at + done);
    done += static_cast<size_t>(n);
    // Direct reads stop off the grid only at the end of the file.
    if (done < needed && part.direct && done % part.alignment != 0) throw shorter(at + done);
  }
  if (!part.direct)
    posix_fadvise(part.fd.get(), static_cast<off_t>(at), static_cast<off_t>(length),
                  POSIX_FADV_DONTNEED);
}

}  // namespace edge_rt
