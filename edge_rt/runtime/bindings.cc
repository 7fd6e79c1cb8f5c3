// The Python module of the runtime; its larger parts are in files of their own.
#include "edge_rt/runtime/bindings.h"

#include <malloc.h>
#include <nanobind/stl/string.h>

#include <string>

#include "edge_rt/runtime/bandwidth.h"
#include "edge_rt/runtime/runtime.h"
#include "edge_rt/runtime/sampler.h"

namespace edge_rt {

using namespace nb::literals;

NB_MODULE(_runtime, m) {
  m.doc() = "The C++ runtime: arena, step program, sampler.";
  // One malloc arena for all threads and early returns to the system: what malloc keeps is memory
  // that the budget has paid for and nobody uses.
  mallopt(M_ARENA_MAX, 1);
  mallopt(M_MMAP_THRESHOLD, 128 * 1024);
  mallopt(M_TRIM_THRESHOLD, 256 * 1024);

  // File and what becomes of IoError are its.
  nb::module_::import_("edge_rt.flash_io._flash_io");
  nb::register_exception_translator([](const std::exception_ptr& thrown, void*) {
    try {
      std::rethrow_exception(thrown);
    } catch (const UseError& error) {
      if (PyErr_Occurred() != nullptr) return;  // what a signal handler raised goes first
      PyErr_SetString(nb::module_::import_("edge_rt.errors").attr("UsageError").ptr(),
                      error.what());
    }
  });

  bind_life_cycle(m);
  nb::class_<Arena>(m, "Arena")
      .def(nb::init<size_t, size_t>(), "bytes"_a, "sparse"_a = 0)
      .def_prop_ro("size", &Arena::size)
      .def("resize", &Arena::resize, "bytes"_a, "kept"_a);
  nb::class_<SamplerOptions>(m, "SamplerOptions")
      .def(nb::init<>())
      .def_rw("temperature", &SamplerOptions::temperature)
      .def_rw("top_k", &SamplerOptions::top_k)
      .def_rw("top_p", &SamplerOptions::top_p)
      .def_rw("min_p", &SamplerOptions::min_p)
      .def_rw("repeat_penalty", &SamplerOptions::repeat_penalty)
      .def_rw("presence_penalty", &SamplerOptions::presence_penalty)
      .def_rw("frequency_penalty", &SamplerOptions::frequency_penalty);
  nb::class_<Sampler>(m, "Sampler").def(nb::init<uint64_t>(), "seed"_a);
  bind_runtime(m);

  m.def(
      "matmul_scratch_bytes", [](size_t n_cols) { return matmul_scratch_bytes(n_cols); },
      "n_cols"_a);
  m.def("attention_scratch_bytes", &attention_scratch_bytes, "head_dim"_a);
  m.def("attention_spans_bytes", &attention_spans_bytes, "n_heads"_a, "head_dim"_a, "n_ctx"_a);
  m.def(
      "kv_head_bytes",
      [](const std::string& kv_format, int head_dim, size_t rows) {
        return kv_head_bytes(kv_format_or_throw(kv_format), head_dim, rows);
      },
      "kv_format"_a, "head_dim"_a, "rows"_a);
  m.def(
      "isa_name", [](const std::string& isa) { return std::string(kernels_or_throw(isa)->name); },
      "isa"_a);
  m.def(
      "measure_memory",
      [](int n_threads, size_t bytes, double seconds) {
        const Unlocked unlocked;
        return measure_memory(n_threads, bytes, seconds);
      },
      "n_threads"_a, "bytes"_a, "seconds"_a, "Bytes per second that threads read from memory.");
  m.def("malloc_trim", [] { malloc_trim(0); });
}

}  // namespace edge_rt
