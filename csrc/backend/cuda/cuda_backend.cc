// Construction, memory, and the ops of the CUDA backend. cuda_weights.cc places weights on the device, cuda_step.cc prepares and ends
// steps.
#include "backend/cuda/cuda_backend.h"

#include <algorithm>
#include <charconv>
#include <utility>

#include "backend/cuda/attention/gated_delta.h"
#include "backend/cuda/attention/mamba2.h"
#include "backend/cuda/gemm/expert_ffn.h"
#include "backend/cuda/gemm/linear.h"
#include "backend/cuda/gemm/packed.h"
#include "backend/cuda/route/router.h"
#include "backend/cuda/rows/gather.h"
#include "backend/cuda/rows/norm.h"
#include "backend/cuda/rows/round.h"
#include "backend/cuda/rows/soft_cap.h"
#include "backend/cuda/sample/sample.h"
#include "base/cpu_topology.h"

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

const float* floats(const WeightView& w) { return static_cast<const float*>(w.data); }  // null of an empty one

ExpertEntry entry_of(const ExpertWeights& w) {  // gate and up share an array, to which both views point
  return {w.gate.data,         w.down.data,     floats(w.gate_bias), floats(w.up_bias),
          floats(w.down_bias), form_of(w.gate), form_of(w.down)};
}

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
    synchronize(stream_);  // queued work may still use the memory that is freed next
  } catch (const Error&) {
    // The queued work failed, which the caller has learned from an earlier wait.
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
  // Memory left for the driver, graphs and other processes.
  const int64_t margin = memory.total / 16;
  return {std::max<int64_t>(0, memory.free - margin), memory.free};
}

// --- ops

int64_t CudaBackend::rounded_row_bytes(int64_t num_columns) const {
  return padded_columns(num_columns) * int64_t(sizeof(uint16_t));
}

const uint16_t* CudaBackend::rounded(const RowsIn& x, int64_t num_rows, int64_t num_columns) {
  if (x.rounded) return static_cast<const uint16_t*>(x.rounded);
  uint16_t* to = static_cast<uint16_t*>(rounded_.get());
  round_rows(x.f32, num_columns, int(num_rows), int(num_columns), to, stream_);
  return to;
}

void CudaBackend::do_embed(const WeightView& table, const int32_t* ids, int64_t num_rows, float* out, float scale) {
  cuda::embed(table.data, ids, int(num_rows), int(table.cols), scale, out, stream_);
}

// Casting away the const of x is safe: x is only written where there is a sum to add, and the sum holds the same rows as writable.
void CudaBackend::do_rmsnorm(const float* x, const WeightView& weight, float eps, int64_t num_rows, const RowsOut& out,
                             const ExpertSum& sum) {
  cuda::rmsnorm(const_cast<float*>(x), sum, floats(weight), eps, int(num_rows), int(weight.cols), out.f32,
                static_cast<uint16_t*>(out.rounded), stream_);
}

void CudaBackend::do_add_rmsnorm(const float* y, const WeightView& weight, float eps, int64_t num_rows, bool accumulate, float* x,
                                 const WeightView& scale, const ExpertSum& sum) {
  cuda::add_rmsnorm(const_cast<float*>(y), sum, floats(weight), eps, int(num_rows), int(weight.cols), accumulate, floats(scale),
                    x, stream_);
}

void CudaBackend::do_layernorm(const float* x, const WeightView& weight, const WeightView& bias, float eps, int64_t num_rows,
                               const RowsOut& out, const ExpertSum& sum) {
  cuda::layernorm(const_cast<float*>(x), sum, floats(weight), floats(bias), eps, int(num_rows), int(weight.cols), out.f32,
                  static_cast<uint16_t*>(out.rounded), stream_);
}

void CudaBackend::do_combine(float* x, int64_t num_rows, const ExpertSum& sum) {
  cuda::combine(sum, int(num_rows), int(limits_.hidden_size), x, stream_);
}

void CudaBackend::do_linear(const RowsIn& x, int64_t num_rows, std::span<const LinearPart> parts, bool accumulate, float* out,
                            int64_t out_stride, float scale) {
  LinearArgs args = {};
  if (parts.size() > std::size(args.parts)) invalid("linear", "expected at most ", std::size(args.parts), " parts");
  const int64_t columns = parts[0].weight.cols;
  args.x = rounded(x, num_rows, columns);
  args.num_rows = int(num_rows);
  args.num_columns = as_int(columns, "linear");
  args.num_parts = int(parts.size());
  for (size_t i = 0; i < parts.size(); ++i)
    args.parts[i] = {parts[i].weight.data, floats(parts[i].bias), as_int(parts[i].weight.rows, "linear"),
                     int(parts[i].out_column), form_of(parts[i].weight)};
  args.out = out;
  args.out_stride = out_stride;
  args.accumulate = accumulate;
  args.scale = scale;
  cuda::linear(args, properties_.num_sms, stream_);
}

void CudaBackend::do_head_linear(const RowsIn& x, int64_t x_stride, int64_t x_head, int64_t num_rows, HeadWeights weights,
                                 float* out, int64_t out_stride, int64_t out_head) {
  const int64_t heads = int64_t(weights.size()), columns = weights[0].cols;
  HeadLinearArgs args = {};
  if (columns == x_head && x_stride == heads * x_head && columns % kBlockColumns == 0) {
    args.x = rounded(x, num_rows, x_stride);  // the heads need no padding: the rounded row is already [A, padded_columns(K)]
  } else {
    uint16_t* to = static_cast<uint16_t*>(rounded_.get());
    round_heads(x.f32, x_stride, x_head, int(num_rows), int(heads), int(columns), to, stream_);
    args.x = to;
  }
  args.weights = weights[0].data;
  args.num_rows = int(num_rows);
  args.num_heads = int(heads);
  args.weight_rows = as_int(weights[0].rows, "head_linear");
  args.num_columns = as_int(columns, "head_linear");
  args.out = out;
  args.out_stride = out_stride;
  args.out_head = out_head;
  cuda::head_linear(args, properties_.num_sms, stream_);
}

void CudaBackend::do_qkv_post(const QkvPostArgs& args, const BatchView& batch, const KvCacheView& cache) {
  cuda::qkv_post(args, int(batch.num_rows), batch.positions, batch.rope(), batch.slots, cache,
                 static_cast<float*>(row_scales_.get()), stream_);
}

void CudaBackend::do_mla_post(const MlaPostArgs& args, const BatchView& batch, const KvCacheView& cache) {
  cuda::mla_post(args, int(batch.num_rows), batch.rope(), batch.slots, cache, stream_);
}

void CudaBackend::do_attention(const AttentionArgs& a, const BatchView& batch, const KvCacheView& cache, const RowsOut& out) {
  PagedAttentionArgs args = {};
  args.q = a.q;
  args.q_stride = a.q_stride;
  args.num_rows = int(batch.num_rows);
  args.num_heads = int(a.num_heads);
  args.scale = a.scale;
  args.window = int(std::min<int64_t>(a.window, INT32_MAX));  // positions are 32 bits
  args.chunk = int(std::min<int64_t>(a.chunk, INT32_MAX));
  args.sinks = floats(a.sinks);
  args.gated = a.gated;
  args.query_start = a.causal ? nullptr : batch.query_start;
  args.positions = batch.positions;
  args.block_tables = batch.block_tables;
  args.max_blocks = batch.max_blocks;
  args.cache = cache;
  args.tiles = step_.attention_tiles;
  args.num_tiles = int(step_.tiles);
  args.first_partial = step_.first_partial;
  args.num_partials = step_.split ? max_partials_ : 0;
  args.partial = static_cast<float*>(attention_partial_.get());
  args.out = out.f32;
  args.rounded = static_cast<uint16_t*>(out.rounded);
  cuda::attention(args, stream_);
}

void CudaBackend::do_gated_delta(const GatedDeltaArgs& args, const BatchView& batch, const StateView& states,
                                 const RowsOut& out) {
  cuda::gated_delta_rule({args, states, batch.query_start, batch.state_slots, int(batch.num_rows), int(batch.num_seqs), out.f32,
                          static_cast<uint16_t*>(out.rounded)},
                         stream_);
}

void CudaBackend::do_mamba2(const Mamba2Args& args, const BatchView& batch, const StateView& states, const RowsOut& out) {
  cuda::mamba2(args,
               {states, batch.query_start, batch.state_slots, int(batch.num_rows), int(batch.num_seqs), out.f32,
                static_cast<uint16_t*>(out.rounded)},
               stream_);
}

void CudaBackend::do_short_conv(const ShortConvArgs& args, const BatchView& batch, const StateView& states, const RowsOut& out) {
  cuda::short_conv(args,
                   {states, batch.query_start, batch.state_slots, int(batch.num_rows), int(batch.num_seqs), out.f32,
                    static_cast<uint16_t*>(out.rounded)},
                   stream_);
}

void CudaBackend::do_router(const float* x, const WeightView& weight, const WeightView& bias, int64_t num_rows, float* scores,
                            float scale) {
  cuda::router(x, weight, floats(bias), int(num_rows), scores, stream_, scale);
}

void CudaBackend::do_route(const float* scores, const BatchView& batch, const RouterRule& rule, const Selection& selection,
                           Routing& routing, DispatchPlan& plan, const uint8_t* cost) {
  if (route_calls_ >= limits_.num_moe_layers) fail(ErrorCode::kInternal, "route", "route: more calls in a step than layers");
  int32_t* counts = static_cast<int32_t*>(counts_.get());
  RouteArgs args = {};
  args.scores = scores;
  args.num_rows = step_.num_rows;
  args.exact = batch.exact;
  args.groups = batch.groups;
  args.cost = cost;
  args.ids = routing.ids;
  args.weights = routing.weights;
  args.active = routing.active;
  args.num_active = counts;
  args.offsets = plan.offsets;
  args.sorted_of_pair = plan.sorted_of_pair;
  args.pair_of_sorted = plan.pair_of_sorted;
  args.stats = static_cast<SelectionStats*>(stats_.get()) + route_calls_++;
  args.tiles = static_cast<Tile*>(tiles_.get());
  args.num_tiles = counts + 1;
  args.max_rows = int(batch.num_rows);
  args.rule = rule;
  args.selection = selection;
  args.phase = batch.phase;
  args.scratch = static_cast<float*>(route_scratch_.get());
  cuda::route(args, stream_);
}

const void* CudaBackend::do_expert_table(std::span<const ExpertWeights> experts) {
  set_device(device_);
  std::vector<ExpertEntry> entries;
  ExpertBits bits = {};
  for (const ExpertWeights& w : experts) {
    for (const WeightView* matrix : {&w.gate, &w.down})
      if (matrix->format != QuantFormat::kPacked || matrix->dtype != DType::kBF16)
        fail(ErrorCode::kUnsupported, "experts", "experts: device \"cuda:", device_,
             "\" multiplies experts that are packed, expert ", entries.size(), " is ",
             matrix->format == QuantFormat::kPlain ? dtype_name(matrix->dtype) : quant_format_name(matrix->format));
    entries.push_back(entry_of(w));
    bits.gate_up |= entries.back().gate_up_form.bits;
    bits.down |= entries.back().down_form.bits;
  }
  const int64_t bytes = int64_t(entries.size() * sizeof(ExpertEntry));
  void* to = allocate_weights(bytes);
  write(to, entries.data(), bytes);
  expert_bits_[to] = bits;
  return to;
}

ExpertSum CudaBackend::do_expert_ffn(const RowsIn& x, int64_t num_rows, const ExpertTable& experts, const RouterRule& rule,
                                     const FfnRule& ffn, const Routing& routing, const DispatchPlan& plan, float*,
                                     bool accumulate) {
  const int32_t* counts = static_cast<const int32_t*>(counts_.get());
  GateUpArgs up = {};
  up.x = rounded(x, num_rows, experts.hidden_size());
  up.experts = static_cast<const ExpertEntry*>(experts.entries());
  up.num_experts = rule.num_experts;
  const ExpertBits& bits = expert_bits_.at(experts.entries());
  up.bits = bits.gate_up;
  up.biased = experts.has_biases();
  up.gated = !experts.all()[0].up.empty();
  up.num_rows = int(num_rows);
  up.hidden_size = int(experts.hidden_size());
  up.width = int(experts.width());
  up.top_k = rule.top_k;
  up.pair_of_sorted = plan.pair_of_sorted;
  up.tiles = static_cast<const Tile*>(tiles_.get());
  up.num_tiles = counts + 1;
  up.hidden = static_cast<uint16_t*>(hidden_.get());
  up.pair_scale = ffn.scale_input ? routing.weights : nullptr;
  up.ffn = ffn;
  gate_up(up, properties_.num_sms, stream_);

  DownArgs args{up, up.hidden, static_cast<float*>(partial_.get())};
  args.bits = bits.down;
  down(args, properties_.num_sms, stream_);

  const float* weights = ffn.scale_input ? nullptr : routing.weights;
  if (ffn.expert_scale) {
    float* scaled = static_cast<float*>(pair_weights_.get());
    scale_weights(weights, routing.ids, ffn.expert_scale, num_rows * rule.top_k, scaled, stream_);
    weights = scaled;
  }
  return {args.partial, routing.ids, weights, rule.top_k, accumulate};
}

void CudaBackend::do_mlp(const RowsIn& x, int64_t num_rows, const ExpertWeights& weights, const WeightView& row_gate, float* out,
                         Activation activation, bool accumulate, float scale, int64_t out_stride) {
  GateUpArgs up = {};
  up.ffn.activation = activation;
  up.x = rounded(x, num_rows, weights.gate.cols);
  up.dense = entry_of(weights);
  up.bits = up.dense.gate_up_form.bits;
  up.biased = !weights.gate_bias.empty();
  up.gated = !weights.up.empty();
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
  args.parts[0] = {weights.down.data, floats(weights.down_bias), int(weights.down.rows), 0, up.dense.down_form};
  args.num_parts = 1;
  args.out = out;
  args.out_stride = out_stride;
  args.accumulate = accumulate;
  args.scale = scale;
  if (!row_gate.empty()) {
    float* gates = static_cast<float*>(row_scales_.get());
    cuda::router(x.f32, row_gate, nullptr, up.num_rows, gates, stream_);
    args.row_gate = gates;
  }
  cuda::linear(args, properties_.num_sms, stream_);
}

void CudaBackend::do_soft_cap(float* values, int64_t count, float cap) { cuda::soft_cap(values, count, cap, stream_); }

void CudaBackend::do_gather_rows(const float* x, std::span<const int32_t> rows, int64_t hidden_size, float* out) {
  copy_async(rows_.get(), stage_copy(rows), rows.size_bytes(), stream_);
  cuda::gather_rows(x, static_cast<const int32_t*>(rows_.get()), int(rows.size()), int(hidden_size), out, stream_);
}

void CudaBackend::do_set_rows(const float* from, int64_t from_stride, int64_t num_rows, int64_t num_columns, bool accumulate,
                              float* x) {
  cuda::set_rows(from, from_stride, int(num_rows), int(num_columns), accumulate, x, stream_);
}

void CudaBackend::do_sample(const float* logits, std::span<const DrawParams> params, std::span<const int32_t> masks,
                            int64_t vocab_size, int32_t* tokens) {
  do_write(token_masks_.get(), masks.data(), int64_t(masks.size_bytes()));
  copy_async(params_.get(), stage_copy(params), params.size_bytes(), stream_);
  const int64_t first = pending_tokens_.empty() ? 0 : pending_tokens_.back().first + pending_tokens_.back().count;
  if (first + int64_t(params.size()) > limits_.max_rows) fail(ErrorCode::kInternal, "sample", "sample: more tokens than rows");
  SampleArgs args = {};
  args.logits = logits;
  args.params = static_cast<const DrawParams*>(params_.get());
  args.num_rows = int(params.size());
  args.vocab_size = int(vocab_size);
  args.masks = static_cast<const int32_t*>(token_masks_.get());
  args.tokens = static_cast<int32_t*>(tokens_.get()) + first;
  cuda::sample(args, stream_);
  pending_tokens_.push_back({tokens, first, int64_t(params.size())});
}

}  // namespace lynx_rt
