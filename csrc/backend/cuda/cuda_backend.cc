// Construction, memory, weights, and the ops; cuda_step.cc has what happens around them.
#include "backend/cuda/cuda_backend.h"

#include <algorithm>
#include <charconv>

#include "backend/cuda/expert_ffn.h"
#include "backend/cuda/linear.h"
#include "backend/cuda/packed.h"
#include "backend/cuda/sample.h"
#include "base/cpu_features.h"

namespace lynx_rt {

using namespace cuda;

namespace {

int device_number(const std::string& device) {
  int number = 0;
  if (device != "cuda") {
    const char *begin = device.data() + 5, *end = device.data() + device.size();
    const auto [at, status] = std::from_chars(begin, end, number);
    if (!device.starts_with("cuda:") || status != std::errc() || at != end || number < 0)
      invalid("device", "expected \"cuda\" or \"cuda:N\", got \"", device, "\"");
  }
  std::string why;
  const int count = device_count(&why);
  if (count == 0) fail(ErrorCode::kUnsupported, "device", "device: \"", device, "\" needs a CUDA device: ", why);
  if (number >= count)
    fail(ErrorCode::kUnsupported, "device", "device: expected \"cuda:0\" to \"cuda:", count - 1, "\", got \"", device, "\"");
  return number;
}

int as_int(int64_t v, const char* what) {
  if (v < 0 || v > INT32_MAX) invalid(what, "expected 0..", INT32_MAX, ", got ", v);
  return int(v);
}

const float* floats(const WeightView& w) { return static_cast<const float*>(w.data); }

}  // namespace

CudaBackend::CudaBackend(const BackendOptions& options) : device_(device_number(options.device)) {
  if (options.compute_dtype != DType::kBF16)
    fail(ErrorCode::kUnsupported, "dtype", "dtype: device \"", options.device, "\" computes in bfloat16, got ",
         dtype_name(options.compute_dtype), "; pass dtype=\"bfloat16\" (weights are then rounded), or device=\"cpu\"");
  properties_ = device_properties(device_);
  check_architecture(properties_);
  set_device(device_);
  owned_stream_ = make_stream();
  stream_ = {owned_stream_.get(), properties_.major >= 9 && options.dependent_launch};
  const int threads = options.num_threads == 0 ? usable_cores() : options.num_threads;
  loader_ = std::make_unique<WeightLoader>(stream_, std::min(threads, 16));
}

CudaBackend::~CudaBackend() {
  try {
    synchronize(stream_);  // before the memory that queued work uses goes
  } catch (const Error&) {
    // The work failed; whoever waited for it has been told.
  }
}

std::string CudaBackend::description() const { return str_cat("cuda:", device_, " ", properties_.name, ", bfloat16"); }

void* CudaBackend::allocate(int64_t bytes, const char* what) {
  set_device(device_);
  return allocate_step_memory(bytes, what).release();
}
void CudaBackend::release(void* p, int64_t) noexcept { const DeviceMemory freed(p); }

DeviceMemory CudaBackend::allocate_step_memory(int64_t bytes, const char* what) {
  try {
    return allocate_device(bytes, what);
  } catch (const Error& e) {
    if (e.code() != ErrorCode::kOutOfMemory) throw;
    throw Error(e.code(), e.field(),
                str_cat(e.what(), "; a smaller max_num_batched_tokens, max_model_len or kv_cache_memory_bytes needs less"));
  }
}

Backend::MemoryBudget CudaBackend::memory_budget() const {
  set_device(device_);
  const MemoryInfo memory = memory_info();
  // What the driver, graphs and other processes may still want.
  const int64_t margin = memory.total / 16;
  return {std::max<int64_t>(0, memory.free - margin), memory.free};
}

// --- weights

WeightView CudaBackend::place(const WeightView& weight, WeightUse use) {
  if (weight.empty()) return weight;
  set_device(device_);
  const bool matrix = use == WeightUse::kEmbed || use == WeightUse::kMatrix || use == WeightUse::kHead;
  if (const auto found = placed_.find(weight.data); found != placed_.end() && matrix) return found->second;
  WeightView placed = weight;
  if (matrix) {
    placed.dtype = DType::kBF16;
    weights_.push_back(allocate_device(packed_bytes(weight.rows, weight.cols), "weights"));
    placed.data = weights_.back().get();
    PackTarget target{weights_.back().get(), 1, 0};
    loader_->load(weight, [&](const void* rows, int64_t begin, int64_t count) {
      pack(rows, weight.dtype, begin, count, weight.cols, target, stream_);
    });
    placed_.emplace(weight.data, placed);
    return placed;
  }
  if (use == WeightUse::kVector || weight.dtype == DType::kF16) placed.dtype = DType::kF32;
  weights_.push_back(allocate_device(placed.bytes(), "weights"));
  char* to = static_cast<char*>(weights_.back().get());
  placed.data = to;
  loader_->load(weight, [&](const void* rows, int64_t begin, int64_t count) {
    void* at = to + begin * placed.row_bytes();
    if (placed.dtype == weight.dtype) {
      copy_async(at, rows, size_t(count * weight.row_bytes()), stream_);
    } else {
      to_float32(rows, weight.dtype, count * weight.cols, static_cast<float*>(at), stream_);
    }
  });
  return placed;
}

void CudaBackend::place_experts(std::span<ExpertWeights> experts) {
  if (experts.empty() || experts[0].gate.empty()) return;
  set_device(device_);
  const int64_t width = experts[0].gate.rows, hidden = experts[0].gate.cols, count = int64_t(experts.size());
  const int64_t gate_up_bytes = 2 * packed_bytes(width, hidden), down_bytes = packed_bytes(hidden, width);
  weights_.push_back(allocate_device(checked_mul(count, gate_up_bytes, "weights"), "weights"));
  char* gate_up_at = static_cast<char*>(weights_.back().get());
  weights_.push_back(allocate_device(checked_mul(count, down_bytes, "weights"), "weights"));
  char* down_at = static_cast<char*>(weights_.back().get());
  const auto load = [&](WeightView& view, PackTarget target) {
    if (view.rows != (target.parts == 2 ? width : hidden) || view.cols != (target.parts == 2 ? hidden : width))
      invalid("experts", "all experts of a layer must have the same shape");
    loader_->load(view, [&](const void* rows, int64_t begin, int64_t rows_count) {
      pack(rows, view.dtype, begin, rows_count, view.cols, target, stream_);
    });
    view.data = target.data;
    view.dtype = DType::kBF16;
  };
  for (ExpertWeights& e : experts) {
    load(e.gate, {gate_up_at, 2, 0});
    load(e.up, {gate_up_at, 2, 1});
    load(e.down, {down_at, 1, 0});
    gate_up_at += gate_up_bytes;
    down_at += down_bytes;
  }
}

// --- ops

void CudaBackend::flush() {
  if (!combine_.partial) return;
  wrote(combine_out_);
  combine(combine_, int(combine_rows_), int(limits_.hidden_size), combine_out_, stream_);
  combine_ = {};
}

const uint16_t* CudaBackend::rounded(const float* x, int64_t num_rows, int64_t num_columns) {
  uint16_t* to = static_cast<uint16_t*>(rounded_.get());
  if (rounded_of_ != x) round_rows(x, num_columns, int(num_rows), int(num_columns), to, stream_);
  rounded_of_ = x;
  return to;
}

void CudaBackend::do_embed(const WeightView& table, const int32_t* ids, int64_t num_rows, float* out) {
  flush();
  wrote(out);
  cuda::embed(table.data, ids, int(num_rows), int(table.cols), out, stream_);
}

void CudaBackend::do_rmsnorm(const float* x, const WeightView& weight, float eps, int64_t num_rows, float* out) {
  const bool fused = combine_.partial && x == combine_out_ && num_rows == combine_rows_ && out != x;
  if (!fused) flush();
  if (fused) wrote(x);
  // Where something is to be combined, x is the array that expert_ffn() was to add to.
  cuda::rmsnorm(const_cast<float*>(x), fused ? combine_ : Combine{}, floats(weight), eps, int(num_rows), int(weight.cols), out,
                static_cast<uint16_t*>(rounded_.get()), stream_);
  if (fused) combine_ = {};
  rounded_of_ = out;
}

void CudaBackend::do_linear(const float* x, int64_t num_rows, std::span<const LinearPart> parts, bool accumulate, float* out,
                            int64_t out_stride) {
  flush();
  LinearArgs args = {};
  if (parts.size() > std::size(args.parts)) invalid("linear", "expected at most ", std::size(args.parts), " parts");
  const int64_t columns = parts[0].weight.cols;
  args.x = rounded(x, num_rows, columns);
  args.num_rows = int(num_rows);
  args.num_columns = as_int(columns, "linear");
  args.num_parts = int(parts.size());
  for (size_t i = 0; i < parts.size(); ++i)
    args.parts[i] = {parts[i].weight.data, parts[i].bias.empty() ? nullptr : floats(parts[i].bias),
                     as_int(parts[i].weight.rows, "linear"), int(parts[i].out_column)};
  args.out = out;
  args.out_stride = out_stride;
  args.accumulate = accumulate;
  cuda::linear(args, properties_.num_sms, stream_);
  wrote(out);
}

void CudaBackend::do_qkv_post(const QkvPostArgs& a, const BatchView& batch, const KvCacheView& cache) {
  wrote(a.qkv);
  cuda::qkv_post(a.qkv, int(batch.num_rows), int(a.num_heads), a.q_norm.empty() ? nullptr : floats(a.q_norm),
                 a.k_norm.empty() ? nullptr : floats(a.k_norm), a.eps, a.rope, batch.positions, batch.slots, cache, stream_);
}

void CudaBackend::do_attention(const float* q, int64_t q_stride, int64_t num_heads, float scale, const BatchView& batch,
                               const KvCacheView& cache, float* out) {
  AttentionArgs args = {};
  args.q = q;
  args.q_stride = q_stride;
  args.num_rows = int(batch.num_rows);
  args.num_heads = int(num_heads);
  args.scale = scale;
  args.positions = batch.positions;
  args.block_tables = batch.block_tables;
  args.max_blocks = batch.max_blocks;
  args.cache = cache;
  args.tiles = step_.attention_tiles;
  args.num_tiles = int(step_.tiles);
  args.first_partial = step_.first_partial;
  args.num_partials = step_.split ? kMaxPartials : 0;
  args.partial = static_cast<float*>(attention_partial_.get());
  args.out = out;
  args.rounded = static_cast<uint16_t*>(rounded_.get());
  cuda::attention(args, stream_);
  rounded_of_ = out;
}

void CudaBackend::do_router(const float* x, const WeightView& weight, int64_t num_rows, float* scores) {
  flush();
  wrote(scores);
  cuda::router(x, weight, int(num_rows), scores, stream_);
}

void CudaBackend::do_route(const float* scores, const BatchView& batch, const RouterRule& rule, const Selection& selection,
                           Routing& routing, DispatchPlan& plan) {
  if (route_calls_ >= limits_.num_moe_layers) fail(ErrorCode::kInternal, "route", "route: more calls in a step than layers");
  int32_t* counts = static_cast<int32_t*>(counts_.get());
  RouteArgs args = {};
  args.scores = scores;
  args.num_rows = step_.num_rows;
  args.exact = batch.exact;
  args.ids = routing.ids;
  args.weights = routing.weights;
  args.active = routing.active;
  args.num_active = counts;
  args.offsets = plan.offsets;
  args.row_of_pair = plan.row_of_pair;
  args.pair_of_row = plan.pair_of_row;
  args.stats = static_cast<SelectionStats*>(stats_.get()) + route_calls_++;
  args.tiles = static_cast<Tile*>(tiles_.get());
  args.num_tiles = counts + 1;
  args.max_rows = int(batch.num_rows);
  args.rule = rule;
  args.selection = selection;
  args.phase = batch.phase;
  cuda::route(args, stream_);
}

void CudaBackend::do_expert_ffn(const float* x, int64_t num_rows, std::span<const ExpertWeights> experts, const RouterRule& rule,
                                const Routing& routing, const DispatchPlan& plan, float* out) {
  flush();
  const WeightView& gate = experts[0].gate;
  const int32_t* counts = static_cast<const int32_t*>(counts_.get());
  GateUpArgs up = {};
  up.x = rounded(x, num_rows, gate.cols);
  up.weights = gate.data;
  up.expert_bytes = 2 * packed_bytes(gate.rows, gate.cols);
  up.num_rows = int(num_rows);
  up.hidden_size = int(gate.cols);
  up.width = int(gate.rows);
  up.top_k = rule.top_k;
  up.pair_of_row = plan.pair_of_row;
  up.tiles = static_cast<const Tile*>(tiles_.get());
  up.num_tiles = counts + 1;
  up.hidden = static_cast<uint16_t*>(hidden_.get());
  gate_up(up, properties_.num_sms, stream_);

  DownArgs args = {};
  args.hidden = up.hidden;
  args.weights = experts[0].down.data;
  args.expert_bytes = packed_bytes(gate.cols, gate.rows);
  args.num_rows = up.num_rows;
  args.hidden_size = up.hidden_size;
  args.width = up.width;
  args.top_k = rule.top_k;
  args.pair_of_row = plan.pair_of_row;
  args.tiles = up.tiles;
  args.num_tiles = up.num_tiles;
  args.partial = static_cast<float*>(partial_.get());
  down(args, properties_.num_sms, stream_);

  combine_ = {args.partial, routing.ids, routing.weights, rule.top_k};
  combine_out_ = out;
  combine_rows_ = num_rows;
}

void CudaBackend::do_mlp(const float* x, int64_t num_rows, const ExpertWeights& weights, float* out) {
  flush();
  GateUpArgs up = {};
  up.x = rounded(x, num_rows, weights.gate.cols);
  up.weights = weights.gate.data;
  up.num_rows = int(num_rows);
  up.hidden_size = int(weights.gate.cols);
  up.width = int(weights.gate.rows);
  up.top_k = 1;
  up.hidden = static_cast<uint16_t*>(hidden_.get());
  gate_up(up, properties_.num_sms, stream_);

  LinearArgs args = {};
  args.x = up.hidden;
  args.num_rows = up.num_rows;
  args.num_columns = up.width;
  args.parts[0] = {weights.down.data, nullptr, up.hidden_size, 0};
  args.num_parts = 1;
  args.out = out;
  args.out_stride = up.hidden_size;
  args.accumulate = true;
  cuda::linear(args, properties_.num_sms, stream_);
  wrote(out);
}

void CudaBackend::do_gather_rows(const float* x, std::span<const int32_t> rows, int64_t hidden_size, float* out) {
  flush();
  wrote(out);
  copy_async(rows_.get(), stage_copy(rows), rows.size_bytes(), stream_);
  cuda::gather_rows(x, static_cast<const int32_t*>(rows_.get()), int(rows.size()), int(hidden_size), out, stream_);
}

void CudaBackend::do_sample(const float* logits, std::span<const DrawParams> params, int64_t vocab_size, int32_t* tokens) {
  copy_async(params_.get(), stage_copy(params), params.size_bytes(), stream_);
  const int64_t first = pending_tokens_.empty() ? 0 : pending_tokens_.back().first + pending_tokens_.back().count;
  if (first + int64_t(params.size()) > limits_.max_rows) fail(ErrorCode::kInternal, "sample", "sample: more tokens than rows");
  SampleArgs args = {};
  args.logits = logits;
  args.params = static_cast<const DrawParams*>(params_.get());
  args.num_rows = int(params.size());
  args.vocab_size = int(vocab_size);
  args.scratch = sample_scratch_.get();
  args.tokens = static_cast<int32_t*>(tokens_.get()) + first;
  cuda::sample(args, stream_);
  pending_tokens_.push_back({tokens, first, int64_t(params.size())});
}

}  // namespace lynx_rt
