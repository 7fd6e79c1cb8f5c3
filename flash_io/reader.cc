#include "flash_io/reader.h"

#include <stdexcept>
#include <utility>

#include "flash_io/faults.h"

namespace edge_rt {

std::unique_ptr<Reader> make_reader(const File& file, const std::string& io, std::byte* memory,
                                    size_t bytes, std::string* why) {
  if (io != "auto" && io != "uring" && io != "pread")
    throw std::invalid_argument("no reader is called " + io);
  std::unique_ptr<Reader> reader;
  if (io != "pread") reader = make_uring_reader(file, kUringDepth, memory, bytes, why);
  if (!reader) reader = make_pread_reader(file, kPreadThreads);
  uint64_t seed;
  if (file.faults() && file.faults()->reorders(&seed))
    reader = make_reordering_reader(std::move(reader), seed);
  return reader;
}

}  // namespace edge_rt
