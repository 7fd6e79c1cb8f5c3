// From the described operations to the steps that the threads run: which operations share a step,
// and what its units are.
#include <algorithm>
#include <numeric>
#include <stdexcept>

#include "edge_rt/runtime/runtime.h"

namespace edge_rt {
namespace {

// Weight bytes per work unit: enough units to balance the threads, each worth its bookkeeping.
constexpr size_t kMinChunkBytes = 8 * 1024, kMaxChunkBytes = 64 * 1024;
constexpr size_t kChunksPerThread = 8;
constexpr size_t kMostChunks = 1 << 20;  // of a step, however large its matrices

constexpr int kEpilogueColumns = 128;  // per block, at least

bool contains(const std::vector<int>& list, int value) {
  return std::find(list.begin(), list.end(), value) != list.end();
}

bool is_by_token(const Op& op) {
  return op.kind != OpKind::kMatmul && op.kind != OpKind::kAttention;
}

// Buffers that an op works through column by column, or head by head.
std::vector<int> column_buffers(const Op& op) {
  switch (op.kind) {
    case OpKind::kStoreKv:
      return {op.src, op.src2};
    case OpKind::kRmsNorm:
    case OpKind::kQuantize:
    case OpKind::kAdd:
    case OpKind::kSiluGate:
    case OpKind::kGeluGate:
      return {op.src, op.dst};
    default:
      return {op.dst};
  }
}

}  // namespace

void Runtime::build_steps(int segment) {
  const std::vector<Op>& ops = ops_[segment];
  for (size_t i = 0; i < ops.size();) {
    Step* before = steps_[segment].empty() ? nullptr : steps_[segment].back().get();
    auto step = std::make_unique<Step>();
    if (is_by_token(ops[i])) {
      for (; i < ops.size() && is_by_token(ops[i]); ++i) {
        step->ops.push_back(ops[i]);
        step->described.push_back(static_cast<int>(i));
      }
      if (before != nullptr) fuse(*before, step->ops, step->described);
      if (step->ops.empty()) continue;
    } else {
      step->ops.push_back(ops[i]);
      step->described.push_back(static_cast<int>(i++));
      if (step->kind() == OpKind::kMatmul) cut_into_chunks(*step);
    }
    steps_[segment].push_back(std::move(step));
  }
}

void Runtime::cut_into_chunks(Step& step) const {
  const std::vector<MatmulPart>& parts = step.ops[0].parts;
  size_t total = 0;
  for (const MatmulPart& part : parts) {
    const Weight& weight = weights_[part.weight];
    total += row_bytes(weight.format, weight.n_cols) * weight.n_rows;
  }
  const size_t chunk_bytes = std::max(
      std::clamp(total / (pool_->size() * kChunksPerThread), kMinChunkBytes, kMaxChunkBytes),
      total / kMostChunks);
  for (int p = 0; p < static_cast<int>(parts.size()); ++p) {
    const Weight& weight = weights_[parts[p].weight];
    const size_t bytes = row_bytes(weight.format, weight.n_cols);
    // Sixteen: prefill works on two groups of eight at a time.
    const int rows = static_cast<int>(std::max<size_t>(16, chunk_bytes / bytes / 16 * 16));
    for (int t = 0; t < static_cast<int>(weight.tiles.size()); ++t) {
      const Tile& tile = weight.tiles[t];
      const int n_chunks = (tile.n_rows + rows - 1) / rows;
      if (tile.arena_offset >= 0) {
        ++step.n_resident_tiles;
      } else {
        const int n_before = static_cast<int>(step.tile_chunks.size());
        if (n_before == 0) step.first_streamed = tile.stream_index;
        if (tile.stream_index != step.first_streamed + n_before)
          throw std::invalid_argument("weights must be added in the order of their use");
        step.tile_chunks.push_back(n_chunks);
      }
      for (int c = 0; c < n_chunks; ++c)
        step.chunks.push_back({p, t, c * rows, std::min(rows, tile.n_rows - c * rows)});
    }
  }
  const auto is_streamed = [&](const Chunk& chunk) {
    return weights_[parts[chunk.part].weight].tiles[chunk.tile].arena_offset < 0;
  };
  const auto resident = std::stable_partition(step.chunks.begin(), step.chunks.end(), is_streamed);
  step.n_streamed = static_cast<int>(resident - step.chunks.begin());
  step.tile_left = std::make_unique<sync::Atomic<int>[]>(step.tile_chunks.size());
  step.epilogue_of.assign(parts.size(), -1);
}

// How many columns of its buffers an op needs at once; 0: all of them.
int Runtime::column_grain(const Op& op) const {
  switch (op.kind) {
    case OpKind::kRmsNorm:
      return op.width < buffers_[op.dst].width ? op.width : 0;
    case OpKind::kQuantize:
      return kBlockColumns;
    case OpKind::kRope:
    case OpKind::kStoreKv:
      return attention_.head_dim;
    case OpKind::kAddBias:
    case OpKind::kAdd:
    case OpKind::kScale:
    case OpKind::kSoftcap:
    case OpKind::kSiluGate:
    case OpKind::kGeluGate:
      return 1;
    default:
      return 0;
  }
}

// `apart`: buffers of earlier ops that are not fused.
bool Runtime::fuse_op(const Step& step, const Op& op, const std::vector<int>& apart,
                      std::vector<Epilogue>& epilogues) const {
  const int grain = column_grain(op);
  if (grain == 0) return false;
  const std::vector<int> buffers = column_buffers(op);
  const int width = buffers_[buffers[0]].width;
  if (width % grain != 0) return false;
  Epilogue joined;
  joined.block = grain;
  joined.width = width;
  std::vector<Epilogue> others;
  for (const Epilogue& epilogue : epilogues) {
    const bool shares = std::any_of(buffers.begin(), buffers.end(),
                                    [&](int b) { return contains(epilogue.buffers, b); });
    if (op.kind == OpKind::kRope && contains(epilogue.buffers, op.src)) return false;
    if (!shares) {
      others.push_back(epilogue);
      continue;
    }
    if (epilogue.width != width) return false;
    joined.block = std::lcm(joined.block, epilogue.block);
    joined.ops.insert(joined.ops.end(), epilogue.ops.begin(), epilogue.ops.end());
    joined.buffers.insert(joined.buffers.end(), epilogue.buffers.begin(), epilogue.buffers.end());
  }
  if (joined.buffers.empty() || width % joined.block != 0) return false;
  for (int b : buffers) {
    if (buffers_[b].width != width || contains(apart, b)) return false;
    if (contains(joined.buffers, b)) continue;
    // Other units still read the step's own input.
    if (step.ops[0].src == b) return false;
    for (const MatmulPart& part : step.ops[0].parts)
      if (part.src == b) return false;
    joined.buffers.push_back(b);
  }
  if (op.kind == OpKind::kRope && contains(apart, op.src)) return false;
  // A unit of attention has the columns of its head, and others still read the KV cache.
  if (step.kind() == OpKind::kAttention &&
      (attention_.head_dim % joined.block != 0 || op.kind == OpKind::kStoreKv))
    return false;
  joined.ops.push_back(op);
  others.push_back(std::move(joined));
  epilogues = std::move(others);
  return true;
}

void Runtime::fuse(Step& step, std::vector<Op>& ops, std::vector<int>& described) const {
  if (step.by_token()) return;
  std::vector<Epilogue> epilogues;
  const auto begin = [&](int buffer) {
    Epilogue epilogue;
    epilogue.buffers = {buffer};
    epilogue.width = buffers_[buffer].width;
    epilogues.push_back(std::move(epilogue));
  };
  const std::vector<MatmulPart>& parts = step.ops[0].parts;
  if (parts.empty()) begin(step.ops[0].dst);
  for (const MatmulPart& part : parts) begin(part.dst);
  std::vector<Op> left;
  std::vector<int> left_described, apart;
  for (size_t i = 0; i < ops.size(); ++i) {
    if (fuse_op(step, ops[i], apart, epilogues)) {
      step.described.push_back(described[i]);
      continue;
    }
    for (int b : {ops[i].src, ops[i].src2, ops[i].dst})
      if (b >= 0) apart.push_back(b);
    if (ops[i].kind == OpKind::kRopeTables)
      for (const RopeTable& table : rope_tables_) apart.push_back(table.buffer);
    left.push_back(ops[i]);
    left_described.push_back(described[i]);
  }
  ops = std::move(left);
  described = std::move(left_described);
  for (Epilogue& epilogue : epilogues) {
    if (epilogue.ops.empty()) continue;
    epilogue.block *= (kEpilogueColumns + epilogue.block - 1) / epilogue.block;
    epilogue.first_block = static_cast<int>(step.block_chunks.size());
    const int n_blocks = (epilogue.width + epilogue.block - 1) / epilogue.block;
    if (!parts.empty()) step.block_chunks.resize(step.block_chunks.size() + n_blocks);
    for (size_t p = 0; p < parts.size(); ++p)
      if (contains(epilogue.buffers, parts[p].dst))
        step.epilogue_of[p] = static_cast<int>(step.epilogues.size());
    step.epilogues.push_back(std::move(epilogue));
  }
  for (const Chunk& chunk : step.chunks) {
    if (step.epilogue_of[chunk.part] < 0) continue;
    const Epilogue& epilogue = step.epilogues[step.epilogue_of[chunk.part]];
    const int row = weights_[parts[chunk.part].weight].tiles[chunk.tile].row + chunk.row;
    for (int b = row / epilogue.block; b * epilogue.block < row + chunk.n_rows; ++b)
      ++step.block_chunks[epilogue.first_block + b];
  }
  step.block_left = std::make_unique<sync::Atomic<int>[]>(step.block_chunks.size());
}

}  // namespace edge_rt
