// Python's view of the runtime. Long calls release the GIL and come up for signals now and then.
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <chrono>

#include "edge_rt/runtime/bindings.h"
#include "edge_rt/runtime/runtime.h"
#include "edge_rt/runtime/sampler.h"

namespace edge_rt {

using namespace nb::literals;

namespace {

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

}  // namespace

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

}  // namespace edge_rt
