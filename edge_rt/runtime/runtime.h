// The step program and what it runs on. Python describes it once (add_* calls), then every pass
// over the model is one run() without Python.
//
// Offsets are into the arena; nothing here allocates in proportion to the model or the context.
// Thread rule: one thread uses a Runtime at a time, which is checked; any thread may close it.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "edge_rt/runtime/arena.h"
#include "edge_rt/runtime/thread_pool.h"
#include "edge_rt/runtime/trace.h"
#include "flash_io/sync.h"
#include "kernels/kernels.h"
#include "kernels/kv_cache.h"
#include "loaders/stream.h"

namespace edge_rt {

struct Tile {  // rows [row, row + n_rows) of a weight: the unit of residency
  int row, n_rows;
  int64_t arena_offset;  // of the payload, or -1: streamed
  int stream_index;      // position in its segment's list when streamed
};

struct Weight {
  int format, n_rows, n_cols;
  int segment;  // the segment that uses it: 0 layers, 1 head
  std::vector<Tile> tiles;
  // Resident tiles are interleaved while loading, streamed ones never; null: none is.
  InterleaveKernel interleave = nullptr;
};

struct Buffer {  // activations (max_tokens, width) float, or their int8 form
  int64_t offset;
  int width;
  bool quantized;
};

enum class OpKind {
  kRmsNorm,     // dst = src normalized over every `width` columns, times a vector of that width
  kQuantize,    // dst = int8 form of src
  kMatmul,      // parts
  kAddBias,     // dst += a vector
  kAdd,         // dst += value * src
  kScale,       // dst *= value
  kSoftcap,     // dst = value * tanh(dst / value)
  kRopeTables,  // every rope table for the pass's positions
  kRope,        // dst turned by the rope table src
  kStoreKv,     // K = src, V = src2 of `layer`
  kAttention,   // dst = attention of src over `layer`; value: scale; window, cap
  kSiluGate,    // dst = silu(dst) * src
  kGeluGate     // dst = gelu(dst) * src
};

struct MatmulPart {  // dst (tokens, n_rows) = or += src (tokens, n_cols) · weight^T
  int weight, src, dst;
  bool accumulate;
};

struct Op {
  OpKind kind;
  int src = -1, src2 = -1, dst = -1;  // buffers
  int64_t vector_offset = -1;         // norm weight or bias in the arena
  int layer = -1;
  float value = 0;  // eps of a norm, scale of attention, factor, cap
  int width = 0;    // columns of one norm
  int window = 0;   // attention: positions seen, the token's own included; 0: all
  float cap = 0;    // attention: soft cap of the scores; 0: none
  std::vector<MatmulPart> parts;
};

struct AttentionShape {
  int n_heads, n_kv_heads, head_dim, n_ctx;
  int kv_format;      // KvFormat
  bool rope_halves;   // rotate (i, i + n/2) pairs instead of (2i, 2i + 1)
  int64_t kv_offset;  // layer by layer: (k|v, kv_head), each kv_head_bytes of kv_positions[layer]
  int64_t spans_offset;  // attention_spans_bytes(n_heads, head_dim, n_ctx), 64-aligned
  // Rows of each layer: n_ctx, or a ring for what a window and one pass need.
  std::vector<int> kv_positions;
  // Scores at position p are multiplied by 1 + temperature * log(1 + floor(p /
  // temperature_length)).
  double temperature = 0;
  int temperature_length = 1;
};

// Bytes for what the spans of a context have given, when the threads share one token's attention.
inline size_t attention_spans_bytes(int n_heads, int head_dim, int n_ctx) {
  const int spans = n_spans(n_ctx);
  return spans < 2 ? 0 : size_t{4} * spans * n_heads * (head_dim + 2);
}

struct RopeTable {
  int buffer;  // (max_tokens, 2 * pairs): cosines, then sines, of the pass's positions
  std::vector<double> frequencies;  // radians per position, one per rotated pair
  double magnitude;                 // of cosines and sines
};

struct Vector {  // a norm weight or a bias: widened to floats in the arena
  uint64_t file_offset;
  int format, n;
  int64_t arena_offset;
  float offset;  // added to every element
};

struct Embedding {  // rows read from the file on demand
  uint64_t file_offset;
  int format, n_rows, n_cols;
  int buffer;              // where the rows go
  int64_t staging_offset;  // staging for max_tokens row reads
  size_t staging_bytes;    // per token
};

struct ResidentRun {  // a contiguous extent of the file that is loaded once
  uint64_t file_offset;
  size_t length;
  int64_t arena_offset;  // of the first payload byte
};

struct Stats {
  uint64_t passes = 0, tokens = 0;
  uint64_t stall_ns = 0;     // time compute threads waited for blocks, summed over threads
  uint64_t run_ns = 0;       // wall time inside run()
  uint64_t flash_bytes = 0;  // requested, padding included
  uint64_t flash_requests = 0;
  uint64_t reading_ns = 0;  // wall time with a read of the stream in flight, between calls as well
  // Tiles used from memory, tiles that were streamed, of passes that were not given up.
  uint64_t block_hits = 0, block_misses = 0;
};

// The Runtime is closed, or another call is in it.
class UseError : public std::logic_error {
 public:
  using std::logic_error::logic_error;
};

// `poll` parameters are called now and then, at least every 50 ms, by the thread that made the
// call, wherever it waits or works; true from one ends the call with false, at once: reads that are
// in flight then are waited for before their memory is used again.
class Runtime {
 public:
  // `io`: as make_reader takes it.
  Runtime(Arena& arena, const File& file, const Kernels* kernels, int n_threads,
          const std::string& io, int max_tokens);
  ~Runtime();  // waits for reads in flight: call close() before to wait interruptibly

  // Makes the call that is in here and all later ones end with UseError. Does not wait. Any thread.
  void cancel() { cancelled_.store(true); }
  // cancel(); then waits until no call is in here and no read in flight, and ends the threads.
  // False: `poll` ended the wait; it may be called again. From within a callback of a call in
  // progress it only cancels. Any thread.
  bool close(const std::function<bool()>& poll);

  int add_buffer(const Buffer& buffer);
  int add_weight(Weight weight, const std::vector<StreamBlock>& streamed);
  void add_op(int segment, Op op) { ops_.at(segment).push_back(std::move(op)); }
  void add_rope_table(RopeTable table) { rope_tables_.push_back(std::move(table)); }
  void add_vector(const Vector& vector) { vectors_.push_back(vector); }
  void set_attention(AttentionShape shape);
  void set_embedding(const Embedding& embedding) { embedding_ = embedding; }
  void set_scratch(int64_t offset, size_t bytes_per_thread);
  void set_logits(int buffer, int n_rows) { logits_ = buffer, logit_rows_ = n_rows; }
  // From now on it is traced what the threads do, into `bytes` of the arena.
  void set_trace(int64_t offset, size_t bytes) {
    trace_.set_memory(at(offset), bytes, pool_->size());
  }
  // Ends the description. Throws std::invalid_argument on what cannot run.
  void finish(int64_t ring_offset, size_t ring_bytes);

  // Reads the vectors and the resident runs, which must ascend in the arena, and interleaves the
  // tiles in them. `progress(done, total)` is called as `poll` is, and
  // may throw.
  bool load(const std::vector<ResidentRun>& runs,
            const std::function<bool(uint64_t, uint64_t)>& progress);

  // Says which segments the next run() and run_head() calls will use.
  bool plan(const std::vector<int>& segments, const std::function<bool()>& poll);
  // One pass of n_tokens tokens at positions position.. through the layers. `with_head`: also the
  // logits of the last token, into logits row 0. False: `poll` cancelled; nothing counts as done.
  bool run(const int32_t* tokens, int n_tokens, int position, bool with_head,
           const std::function<bool()>& poll);
  // Logits of rows [first, first + n_rows) of the last pass into logits rows 0..
  bool run_head(int first, int n_rows, const std::function<bool()>& poll);

  // Throws std::invalid_argument for a row that the logits do not have.
  const float* logits(int row) const;
  int n_vocab() const { return buffers_[logits_].width; }
  int max_tokens() const { return max_tokens_; }
  const std::string& io() const { return io_; }
  const std::string& why_no_uring() const { return why_no_uring_; }
  Stats stats() const;
  // The ops of each step of a segment, as indices in the order of add_op.
  std::vector<std::vector<int>> steps(int segment) const;
  // What was traced since the last call; throws UseError while a call is in here.
  std::vector<TraceEvent> take_trace();
  uint64_t n_trace_lost() const { return trace_.n_lost(); }  // events that did not fit

 private:
  struct Chunk {  // work unit of a matmul: rows of one tile
    int part, tile, row, n_rows;
  };
  // By-token ops that follow a matmul or attention and work column by column (or head by head, or
  // 32 columns at a time). Whoever computes the last of a block's columns does them for the block,
  // so they need no step of their own.
  struct Epilogue {
    std::vector<Op> ops;
    std::vector<int> buffers;  // that they read or write by columns; all of the same width
    int width = 0;
    int block = 1;        // columns
    int first_block = 0;  // in Step::block_left
  };
  struct Step {           // of a segment: ready to run
    std::vector<Op> ops;  // a matmul or attention; or what is done token by token
    std::vector<int>
        described;              // indices of its ops in add_op's order, those of epilogues included
    std::vector<Chunk> chunks;  // of streamed tiles in the stream's order, then of resident ones
    int n_streamed = 0;
    int n_resident_tiles = 0;
    int first_streamed = 0;  // stream_index of its first streamed tile; the others follow
    std::unique_ptr<sync::Atomic<int>[]> tile_left;  // chunks not yet done, per streamed tile
    std::vector<int> tile_chunks;                    // what tile_left starts from
    std::vector<Epilogue> epilogues;
    std::vector<int> epilogue_of;                     // per part; -1: none
    std::unique_ptr<sync::Atomic<int>[]> block_left;  // chunks not yet done, per block of columns
    std::vector<int> block_chunks;                    // what block_left starts from

    OpKind kind() const { return ops[0].kind; }
    bool by_token() const { return kind() != OpKind::kMatmul && kind() != OpKind::kAttention; }
  };
  struct AttentionUnit {  // heads that share a KV head, of some tokens of the pass
    int token, n_tokens, head, n_heads;
    int span;          // the only one of this unit, or -1: all
    float* span_sums;  // (n_heads, head_dim + 2), if it is one
  };
  struct AttentionCut {  // into units: blocks of tokens, sets of heads, spans of positions
    int group, n_together, per_group, n_sets, first_span, spans, block, n_blocks;
    int n_units() const { return n_blocks * n_sets * spans; }
  };
  struct Pass final : Work {
    Pass(Runtime& owner, const std::function<bool()>& stop) : runtime(owner), poll(stop) {}
    Runtime& runtime;
    const std::function<bool()>& poll;
    int segment = 0, n_tokens = 0, position = 0, first_row = 0;
    uint64_t sequence = 0;  // of the segment's first streamed block

    const Step& step(int index) const { return *runtime.steps_[segment][index]; }
    int n_steps() const override { return static_cast<int>(runtime.steps_[segment].size()); }
    Units units(int index) const override;
    bool is_ready(int index, int unit) const override;
    void run_unit(int index, int unit, int thread) override;
    void leave_step(int thread) override {
      if (runtime.trace_.is_on()) runtime.trace_.leave_step(thread);
    }
    void meanwhile() override { runtime.should_stop(*this, 0); }
  };

  // steps.cc
  void build_steps(int segment);
  void cut_into_chunks(Step& step) const;
  // Moves what it can of `ops` (and of `described`) into epilogues of `step`.
  void fuse(Step& step, std::vector<Op>& ops, std::vector<int>& described) const;
  bool fuse_op(const Step& step, const Op& op, const std::vector<int>& apart,
               std::vector<Epilogue>& epilogues) const;
  int column_grain(const Op& op) const;

  bool execute(Pass& pass);
  void run_op(const Pass& pass, const Op& op, int token, int source_token, int first, int n);
  void run_epilogue(const Pass& pass, const Epilogue& epilogue, int token, int first, int n);
  void run_chunk(const Pass& pass, Step& step, int unit, int thread);
  const std::byte* wait_for_tile(const Pass& pass, uint64_t sequence, int thread);
  AttentionCut cut_attention(const Pass& pass, const Op& op) const;
  void run_attention(const Pass& pass, const Step& step, int index, int thread);
  void attend(const Pass& pass, const Op& op, const AttentionUnit& unit, int thread);
  void run_rope_tables(const Pass& pass, int token);
  float attention_scale(const Op& op, int position) const;

  class Use {  // a call in progress
   public:
    explicit Use(Runtime& runtime);  // throws UseError
    ~Use();
    Use(const Use&) = delete;

   private:
    Runtime& runtime_;
  };
  // What a call returns in the end; throws UseError if cancel() was called meanwhile.
  bool ended(bool done) const;

  struct StagedRead {
    AlignedExtent extent;
    size_t needed;      // bytes of the extent that must be there
    std::byte* target;  // extent.length bytes, aligned for direct reads
  };
  // Waits until fewer than `limit` reads of the batch are in flight.
  bool wait_for_batch(int limit, const std::function<bool()>& poll);
  bool begin_batch(const std::function<bool()>& poll);  // once the last one's reads are back
  // `place` says later, in Batch::back, which read it was: below 32.
  void submit_to_batch(const StagedRead& read, bool urgent, uint32_t place = 0);
  void check_batch();  // throws IoError for the first read that failed
  // Reads extents as one batch: `next(i)` gives the i-th of n.
  template <typename Next>
  bool read_staged(int n, const Next& next, const std::function<bool()>& poll);
  bool load_vectors(const std::function<bool()>& poll);
  template <typename Condition>
  bool wait_for_reads(const Condition& condition, const std::function<bool()>& poll);
  struct ResidentTile {
    int64_t begin, end;  // in the arena
    const Weight* weight;
    int n_rows;
  };
  std::vector<ResidentTile> tiles_to_interleave() const;
  void interleave(const ResidentTile* tiles, int n_tiles);
  bool embed(const int32_t* tokens, int n_tokens, const std::function<bool()>& poll);
  bool run_rows(int first, int n_rows, const std::function<bool()>& poll);
  void fail(const std::string& reason, int error);
  bool should_stop(const Pass& pass, int thread);

  void check_matmul(const MatmulPart& part, int segment) const;
  void check_attention(const Op& op) const;

  float* row(int buffer, int token) const;
  Activations activations(int buffer) const;
  std::byte* at(int64_t offset) const { return arena_.data() + offset; }
  std::byte* kv(int layer, int which, int head) const;

  const int owner_;  // process that has the threads
  Arena& arena_;
  const File& file_;
  const Kernels* const kernels_;
  const int max_tokens_;
  std::string io_;  // what was asked for; once there is a reader, its name
  std::string why_no_uring_;

  struct Batch {  // reads that one call waits for, or that it left in flight
    sync::Mutex mutex;
    sync::CondVar changed;
    int in_flight = 0, error = 0;
    uint64_t done = 0;  // bytes
    uint32_t back = 0;  // a bit for each place
    std::string reason;
  };
  Batch batch_;

  std::unique_ptr<ThreadPool> pool_;
  std::unique_ptr<Reader> reader_;
  std::unique_ptr<StreamRing> ring_;

  std::vector<Buffer> buffers_;
  std::vector<Weight> weights_;
  std::array<std::vector<StreamBlock>, 2> streamed_;
  std::array<std::vector<Op>, 2> ops_;
  std::array<std::vector<std::unique_ptr<Step>>, 2> steps_;
  AttentionShape attention_{};
  std::vector<int64_t> kv_offsets_;  // of each layer
  // Spans that are done of the heads that are handed out together; 0 between steps.
  std::unique_ptr<sync::Atomic<int>[]> spans_done_;
  std::vector<RopeTable> rope_tables_;
  std::vector<Vector> vectors_;
  Embedding embedding_{};
  int64_t scratch_offset_ = -1;
  size_t scratch_bytes_ = 0;
  int logits_ = -1, logit_rows_ = 0;

  Trace trace_;

  sync::Atomic<bool> stop_{false};  // this pass
  sync::Mutex failure_mutex_;
  std::string failure_;
  int failure_error_ = 0;
  sync::Clock::time_point next_poll_;

  sync::Atomic<bool> cancelled_{false};  // for good
  sync::Mutex use_mutex_;
  sync::CondVar left_;
  bool in_use_ = false, closing_ = false;
  sync::ThreadId user_{}, closer_{};

  // Counters are no scheduling points of tests.
  std::atomic<uint64_t> passes_{0}, tokens_{0}, run_ns_{0}, stall_ns_{0};
  std::atomic<uint64_t> extra_bytes_{0}, extra_requests_{0};
  std::atomic<uint64_t> block_hits_{0}, block_misses_{0};
};

}  // namespace edge_rt
