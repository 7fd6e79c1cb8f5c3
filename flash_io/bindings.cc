// Python's view of files: the one object through which headers and weights are read, faults for
// tests, and rates.
#include <nanobind/nanobind.h>
#include <nanobind/stl/filesystem.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <mutex>

#include "flash_io/faults.h"
#include "flash_io/measure.h"
#include "flash_io/reader.h"
#include "flash_io/strings.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace edge_rt {
namespace {

using Path = std::filesystem::path;  // names of files need not be UTF-8, as strings of Python's
using Memory = std::unique_ptr<std::byte, void (*)(void*)>;

Memory aligned_memory(const File& file, size_t bytes) {
  const size_t unit = std::max<size_t>(4096, file.alignment());
  Memory memory(static_cast<std::byte*>(std::aligned_alloc(unit, (bytes + unit - 1) / unit * unit)),
                [](void* p) { std::free(p); });
  if (!memory) throw std::bad_alloc();
  return memory;
}

void check_range(const File& file, uint64_t offset, size_t length) {
  if (offset > file.size() || length > file.size() - offset)
    throw IoError(EINVAL, "a read past the end");
}

nb::bytes payload(const Memory& memory, const AlignedExtent& extent, size_t length) {
  return nb::bytes(reinterpret_cast<const char*>(memory.get()) + extent.lead, length);
}

// A read on the calling thread.
nb::bytes read_bytes(const File& file, uint64_t offset, size_t length) {
  check_range(file, offset, length);
  if (length == 0) return nb::bytes("", 0);
  const AlignedExtent extent = file.cover(offset, length);
  const Memory memory = aligned_memory(file, extent.length);
  {
    nb::gil_scoped_release unlocked;
    file.read(extent.offset, extent.length, extent.lead + length, memory.get());
  }
  return payload(memory, extent, length);
}

// Reads [offset, offset + length) in requests of `request_bytes` through a reader.
nb::bytes read_through(const File& file, uint64_t offset, size_t length, size_t request_bytes,
                       const std::string& io) {
  check_range(file, offset, length);
  const AlignedExtent extent = file.cover(offset, length);
  const Memory memory = aligned_memory(file, extent.length);
  struct State {
    std::mutex mutex;
    int error = 0;
    std::string reason;
  } state;
  {
    nb::gil_scoped_release unlocked;
    std::string why;
    const auto reader = make_reader(file, io, memory.get(), extent.length, &why);
    const size_t step = file.cover(0, request_bytes ? request_bytes : 1).length;
    const size_t needed = extent.lead + length;
    for (size_t at = 0; at < extent.length; at += step) {
      const size_t n = std::min(step, extent.length - at);
      reader->submit(
          {extent.offset + at, n, std::min(n, needed > at ? needed - at : 0), memory.get() + at,
           [](void* context, uint64_t, int error, const char* reason) {
             auto* s = static_cast<State*>(context);
             std::lock_guard<std::mutex> lock(s->mutex);
             if (error != 0) s->error = error, s->reason = reason;
           },
           &state, 0},
          false);
    }
    reader->drain();
  }
  if (state.error != 0) throw IoError(state.error, state.reason);
  return payload(memory, extent, length);
}

// Why there is no io_uring here; empty if there is one.
std::string why_no_uring(const File& file) {
  std::string why;
  make_uring_reader(file, 1, nullptr, 0, &why);
  return why;
}

Faults::Kind kind_named(const std::string& name) {
  if (name == "error") return Faults::Kind::kError;
  if (name == "short") return Faults::Kind::kShort;
  if (name == "end") return Faults::Kind::kEnd;
  if (name == "delay") return Faults::Kind::kDelay;
  throw nb::value_error(("unknown kind of fault " + name).c_str());
}

// An OSError with its errno, so that Python makes a FileNotFoundError, a PermissionError, … of it.
void translate(const std::exception_ptr& raised, void*) {
  try {
    std::rethrow_exception(raised);
  } catch (const IoError& error) {
    if (PyErr_Occurred() != nullptr) return;  // what a signal handler raised goes first
    PyObject* sentence = PyUnicode_DecodeFSDefault(error.what());
    if (sentence == nullptr) return;
    PyObject* arguments = Py_BuildValue("(iN)", error.error(), sentence);
    if (arguments == nullptr) return;
    PyErr_SetObject(PyExc_OSError, arguments);
    Py_DECREF(arguments);
  }
}

}  // namespace

NB_MODULE(_flash_io, m) {
  m.doc() = "Reads that bypass the page cache.";
  nb::register_exception_translator(translate);

  nb::class_<Faults>(m, "Faults",
                     "What a worse drive would answer; every read of a File that has it asks here "
                     "first. For tests.")
      .def(nb::init<>())
      .def(
          "add",
          [](Faults& faults, const std::string& kind, int64_t value, const std::string& path,
             uint64_t begin, uint64_t end, uint64_t skip, uint64_t count) {
            faults.add({kind_named(kind), value, path, begin, end, skip, count});
          },
          "kind"_a, "value"_a = 0, "path"_a = "", "begin"_a = 0, "end"_a = UINT64_MAX, "skip"_a = 0,
          "count"_a = UINT64_MAX,
          "Reads that touch bytes [begin, end) of a part whose path ends in `path`: `skip` of them "
          "pass, the next `count` meet `kind`: error (value: errno), short (at most value bytes), "
          "end (no bytes), delay (value: ms).")
      .def("set_chaos", &Faults::set_chaos, "probability"_a, "seed"_a,
           "Every read meets EINTR, EAGAIN, a short read or a small delay with this probability.")
      .def("set_reorder", &Faults::set_reorder, "seed"_a,
           "Completions of readers made from now on come in a random order.")
      .def("clear", &Faults::clear)
      .def_prop_ro("reads", &Faults::reads)
      .def_prop_ro("hits", &Faults::hits)
      .def_prop_ro("bytes", &Faults::bytes)
      .def_prop_ro("farthest", &Faults::farthest);

  nb::class_<File>(m, "File",
                   "Open files laid one after the other, each at a multiple of 1 MiB, read past "
                   "the page cache where their file systems can. Raises OSError.")
      .def(
          "__init__",
          [](File* self, const std::vector<Path>& paths, bool direct) {
            new (self) File(std::vector<std::string>(paths.begin(), paths.end()), direct);
          },
          "paths"_a, "direct"_a = true, nb::call_guard<nb::gil_scoped_release>())
      .def_static(
          "join",
          [](const std::vector<const File*>& files) { return std::make_unique<File>(files); },
          "files"_a, "The parts of several files as one; they stay open.")
      .def("read", &read_bytes, "offset"_a, "length"_a)
      .def("read_through", &read_through, "offset"_a, "length"_a, "request_bytes"_a = 1 << 20,
           "io"_a = "auto")
      .def("check_unchanged", &File::check_unchanged, nb::call_guard<nb::gil_scoped_release>(),
           "Raises OSError if a part was written to since it was opened.")
      .def("inject", &File::inject, "faults"_a.none())
      .def_prop_ro(
          "path",
          [](const File& file) {
            return nb::steal<nb::str>(PyUnicode_DecodeFSDefault(file.path().c_str()));
          },
          "Of the first part.")
      .def_prop_ro("direct", &File::direct)
      .def_prop_ro("alignment", &File::alignment)
      .def_prop_ro("size", &File::size);

  m.def(
      "measure_reads",
      [](const File& file, const std::string& io, size_t request_bytes, int depth, double seconds,
         uint64_t seed, bool used) {
        ReadRate rate;
        {
          nb::gil_scoped_release unlocked;
          rate = measure_reads(file, io, request_bytes, depth, seconds, seed, used);
        }
        nb::dict d;
        d["requests"] = rate.requests;
        d["bytes"] = rate.bytes;
        d["seconds"] = rate.seconds;
        d["cpu_seconds"] = rate.cpu_seconds;
        return d;
      },
      "file"_a, "io"_a, "request_bytes"_a, "depth"_a, "seconds"_a = 1.0, "seed"_a = 1,
      "used"_a = false,
      "Random reads, `depth` at a time, for about `seconds`; `used`: what was read is looked at.");
  m.def("why_no_uring", &why_no_uring, "file"_a, "Why there is no io_uring; empty if there is.");
  m.def(
      "skip_strings",
      [](const nb::bytes& buffer, uint64_t at, uint64_t count) {
        return skip_strings(buffer.c_str(), buffer.size(), at, count);
      },
      "buffer"_a, "at"_a, "count"_a);
}

}  // namespace edge_rt
