#include "backend/backend.h"

#include <cstring>

#include "backend/device_array.h"
#include "backend/op_checks.h"

namespace lynx_rt {

namespace {

constexpr const char* kOpNames[Backend::kNumOps] = {"embed",    "rmsnorm",    "layernorm",   "linear", "head_linear", "qkv_post",
                                                    "mla_post", "attention",  "gated_delta", "mamba2", "short_conv",  "router",
                                                    "route",    "expert_ffn", "mlp",         "logits", "sample"};

void require_rope(const RopeTable& rope, const char* op, int64_t head_dim) {
  if (rope.dim < 0 || rope.dim > head_dim || rope.dim % 2 != 0)
    invalid(op, "expected an even number of rotated columns from 0 to ", head_dim, ", got ", rope.dim);
}

void require_heads(int64_t num_heads, const KvCacheView& cache, const char* op) {
  require(num_heads > 0 && cache.num_kv_heads > 0 && num_heads % cache.num_kv_heads == 0, op,
          "num_heads must be a positive multiple of num_kv_heads");
}

// The weights of H columns, `width` rows inside and `out` rows at the end.
void require_expert(const ExpertWeights& w, const char* op, int64_t width, int64_t hidden, int64_t out) {
  require_shape(w.gate, op, "gate", width, hidden);
  if (!w.up.empty()) {
    require_shape(w.up, op, "up", width, hidden);
    require(w.up.dtype == w.gate.dtype && w.up.format == w.gate.format, op, "gate and up must have the same dtype");
  }
  require_shape(w.down, op, "down", out, width);
  require_vector(w.gate_bias, op, "gate_bias", width);
  require_vector(w.up_bias, op, "up_bias", width);
  require_vector(w.down_bias, op, "down_bias", out);
  require(w.gate_bias.empty() == w.down_bias.empty() && w.up_bias.empty() == (w.up.empty() || w.gate_bias.empty()), op,
          "an expert has all biases or none");
}

void require_activation(const ExpertWeights& w, Activation activation, const char* op) {
  const bool gated = activation != Activation::kRelu2 && activation != Activation::kGelu;
  require(w.up.empty() != gated || activation == Activation::kGeluTanh, op,
          "relu2 and gelu are the activations of experts without up, gelu_tanh of any, the others of experts with up");
}

void require_experts(std::span<const ExpertWeights> experts) {
  require(!experts.empty(), "experts", "expected at least one expert");
  const ExpertWeights& first = experts[0];
  for (const ExpertWeights& w : experts) {
    require_expert(w, "experts", first.gate.rows, first.gate.cols, first.gate.cols);
    require(w.gate_bias.empty() == first.gate_bias.empty(), "experts", "all experts have biases or none");
    require(w.up.empty() == first.up.empty(), "experts", "all experts have up or none");
  }
}

}  // namespace

QuantFormat parse_quantization(const std::string& text) {
  for (QuantFormat s : {QuantFormat::kPlain, QuantFormat::kInt8, QuantFormat::kInt4})
    if (text == quant_format_name(s)) return s;
  if (text == kDequantize) return QuantFormat::kPlain;
  invalid("quantization", "expected none, dequantize, int8 or int4, got \"", text, "\"");
}

bool stays_in_blocks(const BlockRows& rows, const std::string& quantization) {
  if (quantization == kDequantize) return false;
  return rows.code != BlockCode::kGroupedFp8 || parse_quantization(quantization) == QuantFormat::kPlain;
}

bool parse_activations(const std::string& text) {
  if (text != "int8" && text != "bfloat16") invalid("activations", "expected int8 or bfloat16, got \"", text, "\"");
  return text == "int8";
}

Backend::Backend() { reset_profile(); }

void Backend::reset_profile() {
  for (int i = 0; i < kNumOps; ++i) profile_[i] = OpProfile{kOpNames[i]};
}

void Backend::require_none_pending(const char* op) const {
  if (pending_)
    fail(ErrorCode::kInternal, op, op, ": the sum that expert_ffn() left must be given to a norm or to combine() first");
}

ExpertSum Backend::take(PendingSum& pending, const char* op, const float* x, int64_t num_rows) {
  const float* of = std::exchange(pending.x_, nullptr);
  if (!of) {
    require_none_pending(op);
    return {};
  }
  if (!pending_) fail(ErrorCode::kInternal, op, op, ": the sum is of an earlier step");
  if (of != x || pending.num_rows_ != num_rows)
    fail(ErrorCode::kInternal, op, op, ": the sum of ", pending.num_rows_, " rows is for other rows than the ", num_rows,
         " given");
  pending_ = false;
  return pending.sum_;
}

RowsIn Backend::rows_in(const Activations& x, const char* op, int64_t num_columns) const {
  if (x.num_columns_ != num_columns) invalid(op, "x: expected ", num_columns, " columns, got ", x.num_columns_);
  return {x.values_, x.rounded_.bytes() > 0 ? x.rounded_.get() : nullptr};
}

RowsOut Backend::rows_out(Activations& x, const char* op, int64_t num_rows, int64_t num_columns) const {
  if (num_rows > x.max_rows_ || num_columns > x.max_columns_)
    invalid(op, "out: expected at most [", x.max_rows_, ", ", x.max_columns_, "], got [", num_rows, ", ", num_columns, "]");
  x.num_rows_ = num_rows;
  x.num_columns_ = num_columns;
  return {x.f32_.get(), x.rounded_.bytes() > 0 ? x.rounded_.get() : nullptr};
}

void Backend::embed(const WeightView& table, const int32_t* ids, int64_t num_rows, float* out, float scale) {
  require(!table.empty() && num_rows >= 0, "embed", "expected a table and num_rows >= 0");
  if (num_rows == 0) return;
  Scope scope(this, kEmbed, num_rows * table.row_bytes());
  do_embed(table, ids, num_rows, out, scale);
}

void Backend::rmsnorm(const float* x, const WeightView& weight, float eps, int64_t num_rows, Activations& out,
                      PendingSum pending) {
  require_shape(weight, "rmsnorm", "weight", 1, weight.cols);
  const ExpertSum sum = take(pending, "rmsnorm", x, num_rows);
  const RowsOut rows = rows_out(out, "rmsnorm", num_rows, weight.cols);
  if (num_rows == 0) return;
  Scope scope(this, kRmsNorm, weight.bytes());
  do_rmsnorm(x, weight, eps, num_rows, rows, sum);
}

void Backend::add_rmsnorm(const float* y, const WeightView& weight, float eps, int64_t num_rows, bool accumulate, float* x,
                          const WeightView& scale, PendingSum pending) {
  require_shape(weight, "add_rmsnorm", "weight", 1, weight.cols);
  require_vector(scale, "add_rmsnorm", "scale", 1);
  const ExpertSum sum = take(pending, "add_rmsnorm", y, num_rows);
  if (num_rows == 0) return;
  Scope of_op(this, kRmsNorm, weight.bytes() + scale.bytes());
  do_add_rmsnorm(y, weight, eps, num_rows, accumulate, x, scale, sum);
}

void Backend::layernorm(const float* x, const WeightView& weight, const WeightView& bias, float eps, int64_t num_rows,
                        Activations& out, PendingSum pending) {
  require_shape(weight, "layernorm", "weight", 1, weight.cols);
  require_shape(bias, "layernorm", "bias", 1, weight.cols);
  const ExpertSum sum = take(pending, "layernorm", x, num_rows);
  const RowsOut rows = rows_out(out, "layernorm", num_rows, weight.cols);
  if (num_rows == 0) return;
  Scope scope(this, kLayerNorm, weight.bytes() + bias.bytes());
  do_layernorm(x, weight, bias, eps, num_rows, rows, sum);
}

void Backend::combine(PendingSum pending) {
  float* x = pending.x_;
  const int64_t num_rows = pending.num_rows_;
  const ExpertSum sum = take(pending, "combine", x, num_rows);
  if (sum.partial) do_combine(x, num_rows, sum);
}

void Backend::linear(const Activations& x, std::span<const LinearPart> parts, bool accumulate, float* out, int64_t out_stride,
                     float scale) {
  int64_t bytes = 0;
  for (const LinearPart& p : parts) {
    require_shape(p.weight, "linear", "weight", p.weight.rows, parts[0].weight.cols);
    if (!p.bias.empty()) require_shape(p.bias, "linear", "bias", 1, p.weight.rows);
    require(p.out_column >= 0 && p.out_column + p.weight.rows <= out_stride, "linear", "a part reaches past out_stride");
    bytes += p.weight.bytes() + p.bias.bytes();
  }
  if (parts.empty()) return;
  const RowsIn rows = rows_in(x, "linear", parts[0].weight.cols);
  if (x.num_rows() == 0) return;
  Scope scope(this, kLinear, bytes);
  do_linear(rows, x.num_rows(), parts, accumulate, out, out_stride, scale);
}

void Backend::logits(const Activations& x, const WeightView& weight, const WeightView& bias, float scale, float* out,
                     float soft_cap) {
  require_shape(weight, "logits", "weight", weight.rows, weight.cols);
  require_vector(bias, "logits", "bias", weight.rows);
  require(soft_cap >= 0, "logits", "soft_cap must not be negative");
  const RowsIn rows = rows_in(x, "logits", weight.cols);
  if (x.num_rows() == 0) return;
  Scope scope(this, kLogits, weight.bytes() + bias.bytes());
  LinearPart part{weight, bias, 0};
  do_linear(rows, x.num_rows(), {&part, 1}, false, out, weight.rows, scale);
  if (soft_cap > 0) do_soft_cap(out, x.num_rows() * weight.rows, soft_cap);
}

void Backend::head_linear(const Activations& x, int64_t x_head, HeadWeights weights, float* out, int64_t out_stride,
                          int64_t out_head) {
  int64_t bytes = 0;
  for (const WeightView& w : weights) {
    require_shape(w, "head_linear", "weight", weights[0].rows, weights[0].cols);
    require(w.dtype == weights[0].dtype && w.format == weights[0].format, "head_linear", "all heads must have the same dtype");
    bytes += w.bytes();
  }
  if (x.num_rows() == 0 || weights.empty()) return;
  const int64_t last = int64_t(weights.size()) - 1, x_stride = x.num_columns();
  require(x_head >= 0 && last * x_head + weights[0].cols <= x_stride, "head_linear", "a head reaches past the columns of x");
  require(out_head >= weights[0].rows && last * out_head + weights[0].rows <= out_stride, "head_linear",
          "heads overlap in out, or reach past out_stride");
  Scope scope(this, kHeadLinear, bytes);
  do_head_linear(rows_in(x, "head_linear", x_stride), x_stride, x_head, x.num_rows(), weights, out, out_stride, out_head);
}

void Backend::qkv_post(const QkvPostArgs& args, const BatchView& batch, const KvCacheView& cache) {
  const int64_t d = cache.head_dim;
  require_heads(args.num_heads, cache, "qkv_post");
  require(cache.v && cache.v_columns() == d, "qkv_post", "expected V of the same head size as K");
  require(!args.gated || (args.norm != QkNorm::kWidth && args.clip == 0 && args.temperature_floor == 0), "qkv_post",
          "queries with gates are neither clamped nor scaled, nor normed over all heads");
  require_rope(args.rope, "qkv_post", d);
  if (args.norm == QkNorm::kHead || args.norm == QkNorm::kWidth || args.norm == QkNorm::kHeadAfterRope) {
    const bool width = args.norm == QkNorm::kWidth;
    require_shape(args.q_norm, "qkv_post", "q_norm", 1, width ? args.num_heads * d : d);
    require_shape(args.k_norm, "qkv_post", "k_norm", 1, width ? cache.num_kv_heads * d : d);
  }
  require(!args.v_norm || args.clip == 0, "qkv_post", "v is normed or clamped, not both");
  if (batch.num_rows == 0) return;
  Scope scope(this, kQkvPost, args.q_norm.bytes() + args.k_norm.bytes());
  do_qkv_post(args, batch, cache);
}

void Backend::mla_post(const MlaPostArgs& args, const BatchView& batch, const KvCacheView& cache) {
  require_rope(args.rope, "mla_post", cache.head_dim);
  require(args.num_heads > 0 && args.nope >= 0 && cache.num_kv_heads == 1 && !cache.v, "mla_post",
          "expected query heads, and a cache of one head without V");
  require(cache.v_columns() + args.rope.dim == cache.head_dim, "mla_post", "expected K of the latent and the rotated columns");
  require_shape(args.kv_norm, "mla_post", "kv_norm", 1, cache.v_columns());
  if (batch.num_rows == 0) return;
  Scope scope(this, kMlaPost, args.kv_norm.bytes());
  do_mla_post(args, batch, cache);
}

void Backend::attention(const AttentionArgs& args, const BatchView& batch, const KvCacheView& cache, Activations& out) {
  require_heads(args.num_heads, cache, "attention");
  require(args.q_stride >= args.num_heads * cache.head_dim * (args.gated ? 2 : 1), "attention",
          "q_stride is shorter than num_heads * head_dim, or twice that with gates");
  require(!args.gated || cache.v_columns() == cache.head_dim, "attention", "gates need V of the same head size as K");
  require(cache.v || cache.v_columns() <= cache.head_dim, "attention", "V is the first columns of K, but has more");
  require(args.window >= 0 && args.chunk >= 0, "attention", "window and chunk must not be negative");
  require(args.causal || (args.window == 0 && args.chunk == 0), "attention", "without a causal mask there is no window or chunk");
  require_vector(args.sinks, "attention", "sinks", args.num_heads);
  const RowsOut rows = rows_out(out, "attention", batch.num_rows, args.num_heads * cache.v_columns());
  if (batch.num_rows == 0) return;
  const int64_t columns = cache.head_dim + (cache.v ? cache.v_columns() : 0);
  Scope scope(this, kAttention, attended_tokens_ * cache.num_kv_heads * columns * dtype_size(cache.dtype) + args.sinks.bytes());
  do_attention(args, batch, cache, rows);
}

void Backend::router(const float* x, const WeightView& weight, const WeightView& bias, int64_t num_rows, float* scores,
                     float scale) {
  require_shape(weight, "router", "weight", weight.rows, weight.cols);
  require_vector(bias, "router", "bias", weight.rows);
  if (num_rows == 0) return;
  Scope of_op(this, kRouter, weight.bytes() + bias.bytes());
  do_router(x, weight, bias, num_rows, scores, scale);
}

void Backend::route(const float* scores, const BatchView& batch, const RouterRule& rule, const Selection& selection,
                    Routing& routing, DispatchPlan& plan, std::span<const uint8_t> cost) {
  check_rule(rule);
  require(cost.empty() || int64_t(cost.size()) == rule.num_experts, "route", "cost must have one entry per expert");
  require(cost.empty() || takes_cost(), "route", "this device does not know what experts cost");
  require(batch.num_rows >= 0, "route", "num_rows must not be negative");
  require(selection.policy != Policy::kSere || selection.similarity, "route", "sere needs a similarity table");
  require(selection.policy != Policy::kAlias || selection.alias, "route", "alias needs a table");
  require(selection.policy != Policy::kReplay || selection.replay || !acts(selection, batch.phase, batch.num_rows), "route",
          "replay needs recorded ids");
  routing.num_active = routing.num_wanted = 0;
  if (batch.num_rows == 0) return;
  Scope scope(this, kRoute, rule.bias ? rule.num_experts * int64_t(sizeof(float)) : 0);
  do_route(scores, batch, rule, selection, routing, plan, cost.data());
}

ExpertTable Backend::expert_table(std::span<const ExpertWeights> experts) {
  require_experts(experts);
  return {std::vector<ExpertWeights>(experts.begin(), experts.end()), do_expert_table(experts)};
}

ExpertTable Backend::expert_table(ExpertStore& store, int64_t layer) {
  if (!takes_cost())
    fail(ErrorCode::kUnsupported, "expert_memory", "expert_memory: experts are read as they are needed on the CPU only, got ",
         description(), "; use device=\"cpu\"");
  require_experts(store.experts(layer));
  do_expert_table(store.experts(layer));
  return {&store, layer};
}

PendingSum Backend::expert_ffn(const Activations& x, const ExpertTable& experts, const RouterRule& rule, const FfnRule& ffn,
                               const Routing& routing, const DispatchPlan& plan, float* out, bool accumulate) {
  check_rule(rule);
  require(experts.size() == rule.num_experts, "expert_ffn", "the table must have one entry per expert");
  require_activation(experts.all()[0], ffn.activation, "expert_ffn");
  const RowsIn rows = rows_in(x, "expert_ffn", experts.hidden_size());
  if (x.num_rows() == 0) return {};
  Scope scope(this, kExpertFfn);  // the bytes depend on the routing: the decoder adds them by charge()
  const ExpertSum sum = do_expert_ffn(rows, x.num_rows(), experts, rule, ffn, routing, plan, out, accumulate);
  pending_ = true;
  return {out, x.num_rows(), sum};
}

void Backend::mlp(const Activations& x, const ExpertWeights& weights, const WeightView& row_gate, float* out,
                  Activation activation, bool accumulate, float scale, int64_t out_stride) {
  require_expert(weights, "mlp", weights.gate.rows, weights.gate.cols, weights.down.rows);
  require(out_stride == 0 || out_stride >= weights.down.rows, "mlp", "out_stride is shorter than the rows of down");
  require_vector(row_gate, "mlp", "row_gate", weights.gate.cols);
  require(activation != Activation::kClampedSwiglu, "mlp", "the activation must not have parameters");
  require_activation(weights, activation, "mlp");
  const RowsIn rows = rows_in(x, "mlp", weights.gate.cols);
  if (x.num_rows() == 0) return;
  Scope of_op(this, kMlp, weights.bytes() + row_gate.bytes());
  do_mlp(rows, x.num_rows(), weights, row_gate, out, activation, accumulate, scale, out_stride ? out_stride : weights.down.rows);
}

void Backend::gather_rows(const float* x, std::span<const int32_t> rows, int64_t hidden_size, float* out) {
  require_none_pending("gather_rows");
  if (!rows.empty()) do_gather_rows(x, rows, hidden_size, out);
}

void Backend::set_rows(const float* from, int64_t from_stride, int64_t num_rows, int64_t num_columns, bool accumulate, float* x) {
  require_none_pending("set_rows");
  require(num_rows >= 0 && num_columns >= 0 && from_stride >= num_columns, "set_rows",
          "expected rows that do not overlap: from_stride >= num_columns");
  if (num_rows > 0) do_set_rows(from, from_stride, num_rows, num_columns, accumulate, x);
}

void Backend::sample(const float* logits, std::span<const DrawParams> params, std::span<const int32_t> masks, int64_t vocab_size,
                     int32_t* tokens) {
  require(vocab_size >= 1, "sample", "expected a vocabulary");
  const int64_t words = token_mask_words(vocab_size), num_masks = int64_t(masks.size()) / words;
  require(num_masks * words == int64_t(masks.size()) && num_masks <= int64_t(params.size()), "sample",
          "expected whole masks, at most one for each row");
  for (const DrawParams& p : params) require(p.mask_row >= -1 && p.mask_row < num_masks, "sample", "expected a row of the masks");
  if (params.empty()) return;
  Scope scope(this, kSample);
  do_sample(logits, params, masks, vocab_size, tokens);
}

void Backend::write(void* to, const void* from, int64_t bytes) {
  require_none_pending("write");
  do_write(to, from, bytes);
}

void Backend::read(void* to, const void* from, int64_t bytes) {
  require_none_pending("read");
  do_read(to, from, bytes);
}

void Backend::copy(void* to, const void* from, int64_t bytes) {
  require_none_pending("copy");
  do_copy(to, from, bytes);
}

void Backend::do_copy(void* to, const void* from, int64_t bytes) {
  if (bytes > 0) std::memcpy(to, from, size_t(bytes));
}

void Backend::do_write(void* to, const void* from, int64_t bytes) {
  if (bytes > 0) std::memcpy(to, from, size_t(bytes));
}

void Backend::do_read(void* to, const void* from, int64_t bytes) {
  if (bytes > 0) std::memcpy(to, from, size_t(bytes));
}

BatchView Backend::begin_step(const BatchView& batch) {
  attended_tokens_ = 0;
  pending_ = false;  // a step that failed may have left a sum
  for (int64_t s = 0; s < batch.num_seqs; ++s)
    if (batch.query_start[s + 1] > batch.query_start[s]) attended_tokens_ += batch.positions[batch.query_start[s + 1] - 1] + 1;
  return do_begin_step(batch);
}

void Backend::run(const StepKey& key, const BatchView& batch, const std::function<void(const BatchView&)>& ops) {
  if (batch.num_rows > 0) do_run(key, batch, ops);
  require_none_pending("run");
}

void Backend::end_step(std::span<SelectionStats> stats) {
  require_none_pending("end_step");
  do_end_step(stats);
}

}  // namespace lynx_rt
