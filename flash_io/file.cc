#include "flash_io/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "flash_io/transfer.h"

namespace edge_rt {
namespace {

#ifndef STATX_DIOALIGN
#define STATX_DIOALIGN 0x00002000U
#endif

constexpr uint32_t kFuseMagic = 0x65735546, kOverlayMagic = 0x794c7630;  // linux/magic.h

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

bool same_time(const timespec& a, const timespec& b) {
  return a.tv_sec == b.tv_sec && a.tv_nsec == b.tv_nsec;
}

// Whether io_uring may read `fd`. After a short read it asks for the rest itself; FUSE, where the
// server wants no page cache, then reads from the first offset again (seen in Linux 6.18): wrong
// bytes, and nothing to tell them by. An overlay does so for the file below it, which is no FUSE
// file where it tells the alignment of direct reads.
bool safe_for_uring(int fd) {
  struct statfs system;
  if (fstatfs(fd, &system) != 0) return false;
  const auto type = static_cast<uint32_t>(system.f_type);
  if (type == kFuseMagic) return false;
  if (type != kOverlayMagic) return true;
  struct statx info = {};
  return statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &info) == 0 &&
         (info.stx_mask & STATX_DIOALIGN);
}

// False: errno says why.
bool drop_flag(int fd, int flag) {
  const int flags = fcntl(fd, F_GETFL);
  return flags >= 0 && fcntl(fd, F_SETFL, flags & ~flag) == 0;
}

}  // namespace

Part::Part(const std::string& path, bool direct) : path_(path) {
  // O_NONBLOCK: a FIFO must not block us. It goes once the file is known to be none: io_uring takes
  // the flag for a promise that reads never block, and older kernels for "EAGAIN is welcome".
  fd_ = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd_ < 0) {
    const int error = errno;
    struct stat found;
    // A socket, or a terminal that is not there: no drive that went away.
    if (error == ENXIO && stat(path.c_str(), &found) == 0 && !S_ISREG(found.st_mode))
      throw IoError(EINVAL, path + " is not a regular file");
    throw IoError::of(error, "cannot open " + path);
  }
  // From here on the destructor does not run if we throw.
  const auto fail = [this](const IoError& error) {
    close(fd_);
    throw error;
  };
  struct stat info;
  if (fstat(fd_, &info) != 0) fail(IoError::of(errno, "cannot stat " + path));
  if (S_ISDIR(info.st_mode)) fail(IoError(EISDIR, path + " is a folder, a file is needed"));
  if (!S_ISREG(info.st_mode)) fail(IoError(EINVAL, path + " is not a regular file"));
  size_ = static_cast<uint64_t>(info.st_size);
  modified_ = info.st_mtim;
  uring_ = safe_for_uring(fd_);
  const size_t alignment = direct ? direct_alignment(fd_) : 0;
  if (alignment != 0) {
    const int again = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECT | O_NONBLOCK);
    struct stat same;
    // The same file must answer: a rename between the two opens would mix two files.
    if (again >= 0 && fstat(again, &same) == 0 && same.st_ino == info.st_ino &&
        same.st_dev == info.st_dev) {
      close(fd_);
      fd_ = again;
      alignment_ = alignment;
      direct_ = true;
    } else if (again >= 0) {
      close(again);
    }
  }
  if (!drop_flag(fd_, O_NONBLOCK)) fail(IoError::of(errno, "cannot open " + path));
  if (direct_) return;
  posix_fadvise(fd_, 0, 0, POSIX_FADV_RANDOM);  // no read-ahead into the page cache
}

Part::~Part() { close(fd_); }

uint64_t Part::size_now() const {
  struct stat info;
  if (fstat(fd_, &info) != 0) throw IoError::of(errno, "cannot stat " + path_);
  return static_cast<uint64_t>(info.st_size);
}

void Part::check_unchanged() const {
  struct stat info;
  if (fstat(fd_, &info) != 0) throw IoError::of(errno, "cannot stat " + path_);
  const uint64_t size = static_cast<uint64_t>(info.st_size);
  if (size < size_)
    throw IoError(
        EIO, path_ + " ends at byte " + std::to_string(size) + ": it became shorter while in use");
  if (size != size_ || !same_time(info.st_mtim, modified_))
    throw IoError(ESTALE, path_ + " changed while in use: what was read of it may be of two files");
}

void Part::give_up_direct() {
  // The flag may go while others read: each read takes it as it finds it.
  if (!drop_flag(fd_, O_DIRECT))
    throw IoError::of(errno, "cannot read " + path_ + " through the page cache");
  direct_.store(false, std::memory_order_relaxed);
  posix_fadvise(fd_, 0, 0, POSIX_FADV_RANDOM);
}

File::File(const std::vector<std::string>& paths, bool direct) {
  if (paths.empty()) throw IoError(EINVAL, "a model has at least one file");
  for (const std::string& path : paths) append(std::make_shared<Part>(path, direct));
}

File::File(const std::vector<const File*>& files) {
  for (const File* file : files) {
    for (const Placed& placed : file->parts_) append(placed.part);
    if (file->faults_) faults_ = file->faults_;
  }
  if (parts_.empty()) throw IoError(EINVAL, "a model has at least one file");
}

void File::append(std::shared_ptr<Part> part) {
  const uint64_t end = parts_.empty() ? 0 : size();
  const uint64_t start = (end + kPartAlignment - 1) / kPartAlignment * kPartAlignment;
  alignment_ = std::max(alignment_, part->alignment());
  parts_.push_back({std::move(part), start});
}

bool File::direct() const {
  return std::all_of(parts_.begin(), parts_.end(),
                     [](const Placed& p) { return p.part->direct(); });
}

bool File::uring() const {
  return std::all_of(parts_.begin(), parts_.end(), [](const Placed& p) { return p.part->uring(); });
}

size_t File::part_at(uint64_t offset) const {
  const auto after =
      std::upper_bound(parts_.begin() + 1, parts_.end(), offset,
                       [](uint64_t value, const Placed& placed) { return value < placed.start; });
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
                              " lie in " + parts_[next - 1].part->path() +
                              " and in the part after it");
  return {first, static_cast<size_t>(end - first), static_cast<size_t>(offset - first)};
}

void File::read(uint64_t offset, size_t length, size_t needed, std::byte* destination) const {
  Transfer transfer(*this, offset, length, needed, destination);
  while (const auto ask = transfer.next()) {
    if (ask->answer) {
      transfer.take(*ask->answer);
    } else {
      const ssize_t n = pread(ask->fd, ask->to, ask->length, static_cast<off_t>(ask->offset));
      transfer.take(n < 0 ? -errno : n);
    }
  }
}

void File::check_unchanged() const {
  for (const Placed& placed : parts_) placed.part->check_unchanged();
}

}  // namespace edge_rt
