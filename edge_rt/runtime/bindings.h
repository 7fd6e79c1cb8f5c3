// What the parts of the Python module share.
#pragma once

#include <nanobind/nanobind.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <optional>
#include <string>

#include "kernels/kernels.h"
#include "kernels/kv_cache.h"

namespace edge_rt {

namespace nb = nanobind;

// Python runs signal handlers in its main thread alone. The others must not ask for the GIL within
// a pass: at the interpreter's end they would be ended there.
inline bool is_main_thread() { return syscall(SYS_gettid) == getpid(); }

// True if a signal handler raised (Ctrl-C): its exception is then set for this thread.
inline bool signal_raised() {
  if (!is_main_thread()) return false;
  nb::gil_scoped_acquire gil;
  return PyErr_CheckSignals() != 0;
}

// Calls that run without the GIL now. Under the GIL.
inline int calls_in_progress = 0;

// Counts a call, and gives the GIL away for its length.
class Unlocked {
 public:
  Unlocked() { ++calls_in_progress, unlocked_.emplace(); }
  ~Unlocked() { unlocked_.reset(), --calls_in_progress; }
  Unlocked(const Unlocked&) = delete;
  Unlocked& operator=(const Unlocked&) = delete;

 private:
  std::optional<nb::gil_scoped_release> unlocked_;
};

inline void finish_call(bool done) {
  if (!done) throw nb::python_error();
}

inline const Kernels* kernels_or_throw(const std::string& isa) {
  const Kernels* kernels = kernels_named(isa.c_str());
  if (kernels == nullptr) throw nb::value_error(("no kernels for ISA '" + isa + "' here").c_str());
  return kernels;
}

inline int kv_format_or_throw(const std::string& name) {
  const int format = kv_format_named(name.c_str());
  if (format < 0) throw nb::value_error(("unknown KV format '" + name + "'").c_str());
  return format;
}

void bind_life_cycle(nb::module_& m);  // who may use an engine, what it holds, how that ends
void bind_runtime(nb::module_& m);

}  // namespace edge_rt
