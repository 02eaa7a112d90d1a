// The parts of a step around its ops: scratch memory, transfers, the arrays of a batch, recorded steps.
#include <algorithm>
#include <bit>
#include <cstring>

#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/gemm/expert_ffn.h"
#include "backend/cuda/gemm/packed.h"
#include "backend/cuda/sample/sample.h"

namespace lynx_rt {

using namespace cuda;

namespace {

constexpr int64_t kStagingBytes = 4 << 20;
constexpr size_t kMaxRecordedSteps = 128;

int64_t power_of_two(int64_t v) { return int64_t(std::bit_ceil(uint64_t(std::max<int64_t>(v, 1)))); }

// Places the arrays of a step one after the other.
class Layout {
 public:
  template <class T>
  int64_t take(int64_t count) {
    const int64_t at = bytes_;
    bytes_ = round_up(bytes_ + count * int64_t(sizeof(T)), 16);
    return at;
  }
  int64_t bytes() const { return bytes_; }

 private:
  int64_t bytes_ = 0;
};

template <class T>
T* at(void* base, int64_t offset) {
  return reinterpret_cast<T*>(static_cast<char*>(base) + offset);
}

}  // namespace

void CudaBackend::reserve(const StepLimits& l) {
  set_device(device_);
  synchronize(stream_);  // the last weights may still be in the loader's buffers
  loader_.reset();
  limits_ = l;
  const int64_t v_head_dim = l.v_head_dim ? l.v_head_dim : l.head_dim;
  const auto check_dim = [](const char* what, int64_t value, int64_t most) {
    if (value > most || value % 2)
      fail(ErrorCode::kUnsupported, "device", "device: device \"cuda\" supports ", what, " that are even and at most ", most,
           ", got ", value);
  };
  check_dim("head sizes (with MLA: of the latent and the rotated columns together)", l.head_dim, kMaxKeyDim);
  check_dim("head sizes of values (with MLA: of the latent)", v_head_dim, kMaxValueDim);
  check_dim("head sizes of the vision tower", l.tower.head_dim, kMaxValueDim);
  const int64_t widest = std::max(l.head_dim, l.tower.head_dim);
  if (attention_shared_bytes(widest) > properties_.max_shared_per_block)
    fail(ErrorCode::kUnsupported, "device", "device: heads of ", widest, " columns need ", attention_shared_bytes(widest),
         " bytes of shared memory, device \"cuda:", device_, "\" has ", properties_.max_shared_per_block);
  const int64_t t = l.max_rows;
  // Columns of rows that are rounded for one op: linear(), or head_linear(), in which each head is padded.
  const int64_t rounded_columns =
      std::max({padded_columns(l.hidden_size), padded_columns(l.num_heads * v_head_dim), padded_columns(l.max_columns),
                l.num_heads * padded_columns(ceil_div(l.max_columns, l.num_heads))});
  const int64_t rounded_values = std::max(checked_mul(t, rounded_columns, "workspace"),
                                          checked_mul(l.tower.max_rows, padded_columns(l.tower.max_columns), "workspace"));
  rounded_ = allocate_step_memory(checked_mul(rounded_values, 2, "workspace"), "workspace");
  row_scales_ = allocate_step_memory(t * 2 * 4, "workspace");
  const int64_t pairs = t * l.top_k;
  const int64_t hidden_values = std::max({pairs * padded_columns(l.expert_width), t * padded_columns(l.mlp_width),
                                          l.tower.max_rows * padded_columns(l.tower.mlp_width)});
  hidden_ = allocate_step_memory(hidden_values * 2, "workspace");
  partial_ = allocate_step_memory(checked_mul(pairs, l.hidden_size, "workspace") * 4, "workspace");
  pair_weights_ = allocate_step_memory(std::max<int64_t>(1, pairs) * int64_t(sizeof(float)), "workspace");
  const int64_t partial_bytes = l.num_heads * (v_head_dim + 2) * 4;
  max_partials_ = int(std::min<int64_t>(kMaxPartials, std::max<int64_t>(1, kMaxPartialBytes / partial_bytes)));
  attention_partial_ = allocate_step_memory(max_partials_ * partial_bytes, "workspace");
  int64_t tiles = 0;  // smaller tiles make a longer list, so the most rows need not need the most tiles
  for (int64_t rows = t; rows > 0; rows /= 2)
    tiles = std::max(tiles, max_tiles(rows * l.top_k, std::max<int64_t>(l.num_experts, 1), tile_rows(int(rows))));
  for (int64_t rows : {32, 128, 512})
    if (rows <= t) tiles = std::max(tiles, max_tiles(rows * l.top_k, std::max<int64_t>(l.num_experts, 1), tile_rows(int(rows))));
  tiles_ = allocate_step_memory(tiles * int64_t(sizeof(Tile)), "workspace");
  counts_ = allocate_step_memory(2 * sizeof(int32_t), "workspace");
  route_scratch_ = allocate_step_memory(2 * t * l.num_experts * int64_t(sizeof(float)), "workspace");
  stats_ = allocate_step_memory(std::max<int64_t>(1, l.num_moe_layers) * int64_t(sizeof(SelectionStats)), "workspace");
  host_stats_ = allocate_pinned(std::max<int64_t>(1, l.num_moe_layers) * int64_t(sizeof(SelectionStats)), "workspace");
  token_masks_ = allocate_step_memory(l.max_logit_rows * token_mask_words(l.vocab_size) * int64_t(sizeof(int32_t)), "workspace");
  params_ = allocate_step_memory(l.max_logit_rows * int64_t(sizeof(DrawParams)), "workspace");
  tokens_ = allocate_step_memory(t * int64_t(sizeof(int32_t)), "workspace");
  host_tokens_ = allocate_pinned(t * int64_t(sizeof(int32_t)), "workspace");
  rows_ = allocate_step_memory(t * int64_t(sizeof(int32_t)), "workspace");
  if (tier_) tier_->start();
}

// --- transfers

void CudaBackend::wait() {
  synchronize(stream_);
  staged_ = 0;
}

void* CudaBackend::stage(int64_t bytes) {
  if (!staging_.get()) staging_ = allocate_pinned(kStagingBytes, "staging");
  if (staged_ + bytes > kStagingBytes) wait();
  if (bytes > kStagingBytes) fail(ErrorCode::kInternal, "staging", "staging: ", bytes, " bytes at once");
  void* p = at<char>(staging_.get(), staged_);
  staged_ = round_up(staged_ + bytes, 16);
  return p;
}

template <class T>
T* CudaBackend::stage_copy(std::span<const T> values) {
  T* p = static_cast<T*>(stage(int64_t(values.size_bytes())));
  std::copy(values.begin(), values.end(), p);
  return p;
}
template int32_t* CudaBackend::stage_copy(std::span<const int32_t>);
template DrawParams* CudaBackend::stage_copy(std::span<const DrawParams>);

void CudaBackend::do_write(void* to, const void* from, int64_t bytes) {
  set_device(device_);
  for (int64_t done = 0; done < bytes;) {
    const int64_t count = std::min(bytes - done, kStagingBytes / 2);
    void* staged = stage(count);
    std::memcpy(staged, static_cast<const char*>(from) + done, size_t(count));
    copy_async(static_cast<char*>(to) + done, staged, size_t(count), stream_);
    done += count;
  }
}

void CudaBackend::do_read(void* to, const void* from, int64_t bytes) {
  set_device(device_);
  if (bytes > 0) copy_async(to, from, size_t(bytes), stream_);
  wait();
}

void CudaBackend::do_copy(void* to, const void* from, int64_t bytes) {
  set_device(device_);
  if (bytes > 0) copy_async(to, from, size_t(bytes), stream_);
}

// --- a step

// A decode-only batch is padded to one of few sizes, so that one recorded step serves many batches: rows, the stride of the block
// tables and the attention tiles become powers of two. Padding rows have token 0, position -1 and slot -1.
BatchView CudaBackend::do_begin_step(const BatchView& b) {
  set_device(device_);   // each step may be in another thread
  if (in_step_) wait();  // the last step failed before its end
  in_step_ = true;
  decodes_ = b.phase == Phase::kDecodeOnly;
  route_calls_ = 0;
  pending_tokens_.clear();
  step_ = {};
  if (b.num_rows == 0) return b;
  const int64_t group = b.heads_per_kv_head ? b.heads_per_kv_head : limits_.num_heads / limits_.num_kv_heads;
  plan_attention(b, int(group), max_partials_, plan_);

  StepArrays& s = step_;
  s.graph = b.phase == Phase::kDecodeOnly && b.num_rows == b.num_seqs && b.num_rows <= kMaxGraphRows;
  s.rows = s.graph ? std::min(power_of_two(b.num_rows), limits_.max_rows) : b.num_rows;
  s.sequences = s.graph ? s.rows : b.num_seqs;
  s.table_stride = s.graph ? power_of_two(b.max_blocks) : b.max_blocks;
  s.split = plan_.first_partial.back() > 0;
  const int64_t planned = int64_t(plan_.tiles.size()) + (s.rows - b.num_rows);  // padding rows have a tile each
  s.tiles = s.graph ? std::max(s.rows, power_of_two(planned)) : planned;

  Layout layout;
  const int64_t num_rows_at = layout.take<int32_t>(1), ids_at = layout.take<int32_t>(s.rows),
                positions_at = layout.take<int32_t>(s.rows), rope_at = layout.take<int32_t>(s.rows),
                slots_at = layout.take<int64_t>(b.num_page_groups * s.rows),
                tables_at = layout.take<int32_t>(b.num_page_groups * s.sequences * s.table_stride),
                exact_at = layout.take<uint8_t>(s.rows), groups_at = layout.take<int32_t>(s.rows),
                starts_at = layout.take<int32_t>(s.sequences + 1), states_at = layout.take<int32_t>(s.sequences),
                tiles_at = layout.take<AttentionTile>(s.tiles), partials_at = layout.take<int32_t>(s.rows + 1);
  // Recorded ids come last, so that the other arrays are in the same places with and without them.
  const int64_t replay_layers = b.replayed ? limits_.num_moe_layers : 0, row_ids = s.rows * limits_.top_k,
                replayed_at = layout.take<int32_t>(replay_layers * row_ids);
  if (layout.bytes() > step_bytes_) {
    wait();
    recorded_.clear();  // recorded steps use the old memory
    const int64_t bytes = power_of_two(layout.bytes());
    step_host_ = allocate_pinned(bytes, "step");
    step_device_ = allocate_device(bytes, "step");
    step_bytes_ = bytes;
  }

  void* host = step_host_.get();
  *at<int32_t>(host, num_rows_at) = int32_t(b.num_rows);
  const auto fill = [&]<class T>(int64_t offset, const T* values, int64_t count, int64_t padded, T padding) {
    T* to = at<T>(host, offset);
    if (values) {
      std::copy_n(values, count, to);
    } else {
      std::fill_n(to, count, padding);
    }
    std::fill(to + count, to + padded, padding);
  };
  // Tests of single ops may leave arrays null.
  fill(ids_at, b.token_ids, b.num_rows, s.rows, int32_t{0});
  fill(positions_at, b.positions, b.num_rows, s.rows, int32_t{-1});
  fill(rope_at, b.rope(), b.num_rows, s.rows,
       int32_t{0});  // always there, so that recorded steps serve batches with and without images
  for (int64_t g = 0; g < b.num_page_groups; ++g)
    fill(slots_at + g * s.rows * int64_t(sizeof(int64_t)), b.slots ? b.slots + g * b.num_rows : nullptr, b.num_rows, s.rows,
         int64_t{-1});
  fill(exact_at, b.exact, b.num_rows, s.rows, uint8_t{0});
  fill(groups_at, b.groups, b.num_rows, s.rows, int32_t{0});
  fill(states_at, b.state_slots, b.num_seqs, s.sequences, int32_t{-1});
  const int64_t num_starts = b.query_start ? b.num_seqs + 1 : 0;
  fill(starts_at, b.query_start, num_starts, num_starts, int32_t{0});
  for (int64_t i = b.num_seqs; b.query_start && i < s.sequences; ++i)  // a padding row is a sequence
    at<int32_t>(host, starts_at)[i + 1] = at<int32_t>(host, starts_at)[i] + 1;
  for (int64_t g = 0; g < b.num_page_groups; ++g)
    for (int64_t i = 0; i < s.sequences; ++i)
      fill(tables_at + (g * s.sequences + i) * s.table_stride * int64_t(sizeof(int32_t)),
           i < b.num_seqs ? b.block_tables + (g * b.num_seqs + i) * b.max_blocks : nullptr, b.max_blocks, s.table_stride,
           int32_t{0});
  AttentionTile* tiles = at<AttentionTile>(host, tiles_at);
  for (int64_t t = b.num_rows; t < s.rows; ++t) *tiles++ = {int32_t(t), 1, int32_t(t), -1, 0};  // before the splits
  tiles = std::copy(plan_.tiles.begin(), plan_.tiles.end(), tiles);
  std::fill(tiles, at<AttentionTile>(host, tiles_at) + s.tiles, AttentionTile{0, 0, 0, -1, 0});
  fill(partials_at, plan_.first_partial.data(), b.num_rows + 1, s.rows + 1, plan_.first_partial.back());
  for (int64_t l = 0; l < replay_layers; ++l)
    fill(replayed_at + l * row_ids * int64_t(sizeof(int32_t)), b.replayed + l * b.num_rows * limits_.top_k,
         b.num_rows * limits_.top_k, row_ids, int32_t{-1});

  void* device = step_device_.get();
  copy_async(device, host, size_t(layout.bytes()), stream_);
  s.num_rows = at<int32_t>(device, num_rows_at);
  s.attention_tiles = at<AttentionTile>(device, tiles_at);
  s.first_partial = at<int32_t>(device, partials_at);

  BatchView view = b;
  view.num_rows = s.rows;
  view.num_seqs = s.sequences;
  view.token_ids = at<int32_t>(device, ids_at);
  view.positions = at<int32_t>(device, positions_at);
  view.rope_rows = at<int32_t>(device, rope_at);
  view.slots = at<int64_t>(device, slots_at);
  view.query_start = at<int32_t>(device, starts_at);  // attention takes the rows of a sequence from its tiles instead
  view.state_slots = at<int32_t>(device, states_at);
  view.block_tables = at<int32_t>(device, tables_at);
  view.max_blocks = s.table_stride;
  view.exact = at<uint8_t>(device, exact_at);
  view.groups = b.groups ? at<int32_t>(device, groups_at) : nullptr;
  view.replayed = b.replayed ? at<int32_t>(device, replayed_at) : nullptr;
  return view;
}

void CudaBackend::do_run(const StepKey& key, const BatchView& batch, const std::function<void(const BatchView&)>& ops) {
  const auto run_ops = [&] { ops(batch); };
  if (!step_.graph) return run_ops();
  if (recorded_.size() >= kMaxRecordedSteps) recorded_.clear();
  RecordedStep& recorded = recorded_[str_cat(key.selection, " ", step_.rows, " ", step_.table_stride, " ", step_.tiles, " ",
                                             step_.split, " ", batch.groups != nullptr, " ", uintptr_t(key.cache))];
  // The first step of these sizes is not recorded: a kernel's first launch may do a set-up that is not allowed while recording.
  if (recorded.uses++ == 0) return run_ops();
  if (recorded.graph.empty()) {
    const std::array<OpProfile, kNumOps> before = profile_;
    recorded.graph = Graph::capture(stream_, run_ops);
    recorded.route_calls = route_calls_;
    for (int op = 0; op < kNumOps; ++op) {
      recorded.calls[op] = profile_[op].calls - before[op].calls;
      recorded.bytes[op] = profile_[op].bytes - before[op].bytes;
    }
    recorded.bytes[kAttention] /= std::max<int64_t>(1, attended_tokens_);
    profile_ = before;
  }
  for (int op = 0; op < kNumOps; ++op) {
    profile_[op].calls += recorded.calls[op];
    profile_[op].bytes += recorded.bytes[op] * (op == kAttention ? attended_tokens_ : 1);
  }
  recorded.graph.launch(stream_);
  route_calls_ = recorded.route_calls;
}

void CudaBackend::do_end_step(std::span<SelectionStats> stats) {
  const size_t stats_bytes = size_t(route_calls_) * sizeof(SelectionStats);
  if (stats_bytes) copy_async(host_stats_.get(), stats_.get(), stats_bytes, stream_);
  const int64_t num_tokens = pending_tokens_.empty() ? 0 : pending_tokens_.back().first + pending_tokens_.back().count;
  if (num_tokens) copy_async(host_tokens_.get(), tokens_.get(), size_t(num_tokens) * sizeof(int32_t), stream_);
  const bool routed = route_calls_ > 0;  // steps of a vision tower are not
  if (tier_ && routed) tier_->read_uses(route_calls_);
  wait();
  in_step_ = false;

  const auto* counted = static_cast<const SelectionStats*>(host_stats_.get());
  for (int i = 0; i < route_calls_; ++i) {
    const int32_t bad = counted[i].first_bad;
    if (bad < 0) continue;
    const int64_t row = bad / limits_.num_experts, expert = bad % limits_.num_experts;
    throw RowError(row, ErrorCode::kInvalidArgument, "router scores",
                   str_cat("router scores: row ", row, ", expert ", expert, ": expected a finite value, got NaN or infinity"));
  }
  std::copy_n(counted, std::min(stats.size(), size_t(route_calls_)), stats.begin());
  if (tier_ && routed) tier_->end_step(route_calls_, decodes_);
  const auto* tokens = static_cast<const int32_t*>(host_tokens_.get());
  for (const PendingTokens& p : pending_tokens_) std::copy_n(tokens + p.first, p.count, p.to);
  pending_tokens_.clear();
}

}  // namespace lynx_rt
