// Python's view of the runtime. Long calls release the GIL and come up for signals now and then.
#include <malloc.h>
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <chrono>
#include <memory>
#include <optional>

#include "edge_rt/runtime/bandwidth.h"
#include "edge_rt/runtime/gate.h"
#include "edge_rt/runtime/runtime.h"
#include "edge_rt/runtime/sampler.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace edge_rt {
namespace {

// Python runs signal handlers in its main thread alone. The others must not ask for the GIL within
// a pass: at the interpreter's end they would be ended there.
bool is_main_thread() { return syscall(SYS_gettid) == getpid(); }

// True if a signal handler raised (Ctrl-C): its exception is then set for this thread.
bool signal_raised() {
  if (!is_main_thread()) return false;
  nb::gil_scoped_acquire gil;
  return PyErr_CheckSignals() != 0;
}

// Calls that run without the GIL now. Under the GIL.
int calls_in_progress = 0;

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

// An engine's runtime. Dropped with its engine, it is closed, but nobody waits for a silent drive
// under the GIL: what is not closed in time is put into `unanswered`. An object of C++, because
// Python loses what a signal handler raises in a `__del__`.
class Kept {
 public:
  explicit Kept(nb::list unanswered) : unanswered_(std::move(unanswered)) {}
  ~Kept() {
    if (runtime.is_none()) return;
    try {
      auto& r = nb::cast<Runtime&>(runtime);
      if (r.close([] { return true; })) return;  // mostly there is nothing to wait for
      const auto end = std::chrono::steady_clock::now() + kPatience;
      bool done = false;
      if (!at_exit) {
        const Unlocked unlocked;
        done = r.close([&] { return std::chrono::steady_clock::now() >= end; });
      }
      if (!done) abandon();
    } catch (...) {
      abandon();
    }
  }
  Kept(const Kept&) = delete;
  Kept& operator=(const Kept&) = delete;

  void abandon() {
    if (!runtime.is_none()) unanswered_.append(runtime);
    runtime = nb::none();
  }

  nb::object runtime = nb::none();
  // The interpreter ends: who gives the GIL away may not get it back, and its thread ends right
  // there.
  static inline bool at_exit = false;

 private:
  static constexpr auto kPatience = std::chrono::milliseconds(100);
  nb::list unanswered_;
};

void finish_call(bool done) {
  if (!done) throw nb::python_error();
}

const Kernels* kernels_or_throw(const std::string& isa) {
  const Kernels* kernels = kernels_named(isa.c_str());
  if (kernels == nullptr) throw nb::value_error(("no kernels for ISA '" + isa + "' here").c_str());
  return kernels;
}

int kv_format_or_throw(const std::string& name) {
  const int format = kv_format_named(name.c_str());
  if (format < 0) throw nb::value_error(("unknown KV format '" + name + "'").c_str());
  return format;
}

using Logits = nb::ndarray<float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using TileTuple = std::tuple<int, int, int64_t>;         // row, n_rows, arena offset or -1
using BlockTuple = std::pair<uint64_t, size_t>;          // file offset, length
using RunTuple = std::tuple<uint64_t, size_t, int64_t>;  // file offset, length, arena offset
using PartTuple = std::tuple<int, int, int, bool>;       // weight, src, dst, accumulate

OpKind kind_named(const std::string& name) {
  static const std::pair<const char*, OpKind> kinds[] = {{"rms_norm", OpKind::kRmsNorm},
                                                         {"quantize", OpKind::kQuantize},
                                                         {"matmul", OpKind::kMatmul},
                                                         {"add_bias", OpKind::kAddBias},
                                                         {"add", OpKind::kAdd},
                                                         {"scale", OpKind::kScale},
                                                         {"softcap", OpKind::kSoftcap},
                                                         {"rope_tables", OpKind::kRopeTables},
                                                         {"rope", OpKind::kRope},
                                                         {"store_kv", OpKind::kStoreKv},
                                                         {"attention", OpKind::kAttention},
                                                         {"silu_gate", OpKind::kSiluGate},
                                                         {"gelu_gate", OpKind::kGeluGate}};
  for (const auto& [known, kind] : kinds)
    if (name == known) return kind;
  throw nb::value_error(("unknown operation " + name).c_str());
}

void bind_runtime(nb::module_& m) {
  nb::class_<Runtime>(m, "Runtime")
      .def(
          "__init__",
          [](Runtime* self, Arena& arena, const File& file, const std::string& isa, int n_threads,
             const std::string& io, int max_tokens) {
            new (self) Runtime(arena, file, kernels_or_throw(isa), n_threads, io, max_tokens);
          },
          "arena"_a, "file"_a, "isa"_a, "n_threads"_a, "io"_a, "max_tokens"_a,
          nb::keep_alive<1, 2>(), nb::keep_alive<1, 3>())
      .def(
          "add_buffer",
          [](Runtime& r, int64_t offset, int width, bool quantized) {
            return r.add_buffer({offset, width, quantized});
          },
          "offset"_a, "width"_a, "quantized"_a)
      .def(
          "add_weight",
          [](Runtime& r, int format, int n_rows, int n_cols, int segment,
             const std::vector<TileTuple>& tiles, const std::vector<BlockTuple>& streamed) {
            Weight weight{format, n_rows, n_cols, segment, {}};
            std::vector<StreamBlock> blocks;
            for (const auto& [row, rows, offset] : tiles)
              weight.tiles.push_back({row, rows, offset, -1});
            for (const auto& [offset, length] : streamed) blocks.push_back({offset, length});
            return r.add_weight(std::move(weight), blocks);
          },
          "format"_a, "n_rows"_a, "n_cols"_a, "segment"_a, "tiles"_a, "streamed"_a)
      .def(
          "add_op",
          [](Runtime& r, int segment, const std::string& kind, int src, int src2, int dst,
             int64_t vector_offset, int layer, float value, int width, int window, float cap,
             const std::vector<PartTuple>& parts) {
            Op op;
            op.kind = kind_named(kind);
            op.src = src, op.src2 = src2, op.dst = dst;
            op.vector_offset = vector_offset, op.layer = layer, op.value = value;
            op.width = width, op.window = window, op.cap = cap;
            for (const auto& [weight, from, to, accumulate] : parts)
              op.parts.push_back({weight, from, to, accumulate});
            r.add_op(segment, std::move(op));
          },
          "segment"_a, "kind"_a, "src"_a = -1, "src2"_a = -1, "dst"_a = -1, "vector_offset"_a = -1,
          "layer"_a = -1, "value"_a = 0.0f, "width"_a = 0, "window"_a = 0, "cap"_a = 0.0f,
          "parts"_a = std::vector<PartTuple>())
      .def(
          "set_attention",
          [](Runtime& r, int n_heads, int n_kv_heads, int head_dim, int n_ctx,
             const std::string& kv_format, bool rope_halves, int64_t kv_offset,
             int64_t spans_offset, const std::vector<int>& kv_positions, double temperature,
             int temperature_length) {
            r.set_attention({n_heads, n_kv_heads, head_dim, n_ctx, kv_format_or_throw(kv_format),
                             rope_halves, kv_offset, spans_offset, kv_positions, temperature,
                             temperature_length});
          },
          "n_heads"_a, "n_kv_heads"_a, "head_dim"_a, "n_ctx"_a, "kv_format"_a, "rope_halves"_a,
          "kv_offset"_a, "spans_offset"_a, "kv_positions"_a, "temperature"_a = 0.0,
          "temperature_length"_a = 1)
      .def(
          "add_rope_table",
          [](Runtime& r, int buffer, const std::vector<double>& frequencies, double magnitude) {
            r.add_rope_table({buffer, frequencies, magnitude});
          },
          "buffer"_a, "frequencies"_a, "magnitude"_a)
      .def(
          "add_vector",
          [](Runtime& r, uint64_t file_offset, int format, int n, int64_t arena_offset,
             float offset) { r.add_vector({file_offset, format, n, arena_offset, offset}); },
          "file_offset"_a, "format"_a, "n"_a, "arena_offset"_a, "offset"_a)
      .def(
          "set_embedding",
          [](Runtime& r, uint64_t file_offset, int format, int n_rows, int n_cols, int buffer,
             int64_t staging_offset, size_t staging_bytes) {
            r.set_embedding(
                {file_offset, format, n_rows, n_cols, buffer, staging_offset, staging_bytes});
          },
          "file_offset"_a, "format"_a, "n_rows"_a, "n_cols"_a, "buffer"_a, "staging_offset"_a,
          "staging_bytes"_a)
      .def("set_scratch", &Runtime::set_scratch, "offset"_a, "bytes_per_thread"_a)
      .def("set_logits", &Runtime::set_logits, "buffer"_a, "n_rows"_a)
      .def("set_trace", &Runtime::set_trace, "offset"_a, "bytes"_a)
      .def("finish", &Runtime::finish, "ring_offset"_a, "ring_bytes"_a)
      .def(
          "load",
          [](Runtime& r, const std::vector<RunTuple>& runs, nb::object progress) {
            std::vector<ResidentRun> list;
            for (const auto& [offset, length, at] : runs) list.push_back({offset, length, at});
            bool done;
            {
              const Unlocked unlocked;
              done = r.load(list, [&](uint64_t bytes, uint64_t total) {
                if (progress.is_none()) return signal_raised();
                nb::gil_scoped_acquire gil;
                progress(bytes, total);
                return PyErr_CheckSignals() != 0;
              });
            }
            finish_call(done);
          },
          "runs"_a, "progress"_a.none())
      .def(
          "plan",
          [](Runtime& r, const std::vector<int>& segments) {
            if (r.plan(segments, [] { return true; })) return;  // mostly there is no need to wait
            bool done;
            {
              const Unlocked unlocked;
              done = r.plan(segments, signal_raised);
            }
            finish_call(done);
          },
          "segments"_a)
      .def("cancel", &Runtime::cancel)
      .def(
          "close",
          [](Runtime& r, std::optional<double> seconds) {
            using Clock = std::chrono::steady_clock;
            const auto end = Clock::now() + std::chrono::duration<double>(seconds.value_or(0));
            bool raised = false, done;
            {
              const Unlocked unlocked;
              done = r.close([&] {
                raised = signal_raised();
                return raised || (seconds && Clock::now() >= end);
              });
            }
            finish_call(!raised);
            return done;
          },
          "seconds"_a = nb::none())
      .def(
          "run",
          [](Runtime& r, const std::vector<int32_t>& tokens, int position, bool with_head) {
            bool done;
            {
              const Unlocked unlocked;
              done = r.run(tokens.data(), static_cast<int>(tokens.size()), position, with_head,
                           signal_raised);
            }
            finish_call(done);
          },
          "tokens"_a, "position"_a, "with_head"_a)
      .def(
          "run_head",
          [](Runtime& r, int first, int n_rows) {
            bool done;
            {
              const Unlocked unlocked;
              done = r.run_head(first, n_rows, signal_raised);
            }
            finish_call(done);
          },
          "first"_a, "n_rows"_a)
      .def(
          "copy_logits",
          [](const Runtime& r, int row, Logits out) {
            if (out.shape(0) != static_cast<size_t>(r.n_vocab()))
              throw nb::value_error(
                  "the destination must hold one logit per token of the vocabulary");
            std::copy_n(r.logits(row), r.n_vocab(), out.data());
          },
          "row"_a, "out"_a)
      .def(
          "logits_bytes",
          [](const Runtime& r, int row) {
            return nb::bytes(reinterpret_cast<const char*>(r.logits(row)),
                             static_cast<size_t>(r.n_vocab()) * sizeof(float));
          },
          "row"_a)
      .def(
          "logits_are_finite",
          [](const Runtime& r, int row) { return all_finite(r.logits(row), r.n_vocab()); }, "row"_a)
      .def(
          "negative_log_likelihood",
          [](const Runtime& r, int row, int target) {
            if (target < 0 || target >= r.n_vocab()) throw nb::value_error("no such token");
            return negative_log_likelihood(r.logits(row), r.n_vocab(), target);
          },
          "row"_a, "target"_a)
      .def(
          "sample",
          [](Runtime& r, Sampler& sampler, const SamplerOptions& options,
             const std::vector<int32_t>& history,
             const std::vector<std::pair<int32_t, float>>& bias, Arena& arena,
             int64_t scratch_offset) {
            return sampler.sample(const_cast<float*>(r.logits(0)), r.n_vocab(), options, history,
                                  bias,
                                  reinterpret_cast<Candidate*>(arena.data() + scratch_offset));
          },
          "sampler"_a, "options"_a, "history"_a, "bias"_a, "arena"_a, "scratch_offset"_a)
      .def_prop_ro("n_vocab", &Runtime::n_vocab)
      .def_prop_ro("max_tokens", &Runtime::max_tokens)
      .def_prop_ro("io", &Runtime::io)
      .def_prop_ro("why_no_uring", &Runtime::why_no_uring)
      .def("steps", &Runtime::steps, "segment"_a)
      .def("take_trace",
           [](Runtime& r) {
             const std::vector<TraceEvent> events = r.take_trace();
             return nb::bytes(reinterpret_cast<const char*>(events.data()),
                              events.size() * sizeof(TraceEvent));
           })
      .def_prop_ro("n_trace_lost", &Runtime::n_trace_lost)
      .def("stats", [](const Runtime& r) {
        const Stats s = r.stats();
        nb::dict d;
        d["passes"] = s.passes;
        d["tokens"] = s.tokens;
        d["stall_ns"] = s.stall_ns;
        d["run_ns"] = s.run_ns;
        d["flash_bytes"] = s.flash_bytes;
        d["flash_requests"] = s.flash_requests;
        d["reading_ns"] = s.reading_ns;
        d["block_hits"] = s.block_hits;
        d["block_misses"] = s.block_misses;
        return d;
      });
}

}  // namespace

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

  nb::class_<Hold>(m, "Hold")
      .def("__enter__", [](nb::handle self) { return nb::borrow(self); })
      .def("__exit__", [](Hold& hold, nb::args) { hold.release(); });
  nb::class_<Kept>(m, "Kept")
      .def(nb::init<nb::list>(), "unanswered"_a)
      .def("abandon", &Kept::abandon)
      .def_rw("runtime", &Kept::runtime, nb::for_setter(nb::arg("runtime").none()));
  nb::class_<Gate>(m, "Gate").def(nb::init<>()).def("enter", &Gate::enter);
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
  m.def("calls_in_progress", [] { return calls_in_progress; });
  m.def("begin_exit", [] { Kept::at_exit = true; });
  m.def("forget_calls", [] { calls_in_progress = 0; });  // of threads that a fork left behind
  m.def("keep_forever", [](nb::handle object) { object.inc_ref(); }, "object"_a);
  m.def("set_leak_warnings", [](bool on) { nb::set_leak_warnings(on); }, "on"_a);
}

}  // namespace edge_rt
