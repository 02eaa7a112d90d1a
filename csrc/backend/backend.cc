#include "backend/backend.h"

#include <chrono>
#include <cstring>

namespace lynx_rt {

namespace {

constexpr const char* kOpNames[Backend::kNumOps] = {"embed", "rmsnorm",    "linear", "qkv_post", "attention", "router",
                                                    "route", "expert_ffn", "mlp",    "logits",   "sample"};

void require(bool ok, const char* op, const char* text) {
  if (!ok) invalid(op, text);
}

void require_shape(const WeightView& w, const char* op, const char* what, int64_t rows, int64_t cols) {
  if (w.empty() || w.rows != rows || w.cols != cols)
    invalid(op, what, ": expected ", std::vector<int64_t>{rows, cols}, ", got ", std::vector<int64_t>{w.rows, w.cols});
}

void require_rule(const RouterRule& rule, const char* op) {
  if (rule.num_experts < 1 || rule.top_k < 1 || rule.top_k > rule.num_experts)
    invalid(op, "expected 1 <= top_k <= num_experts, got top_k ", rule.top_k, ", num_experts ", rule.num_experts);
}

void require_expert(const ExpertWeights& w, const char* op, int64_t width) {
  int64_t hidden = w.gate.cols;
  require_shape(w.gate, op, "gate", width, hidden);
  require_shape(w.up, op, "up", width, hidden);
  require(w.up.dtype == w.gate.dtype && w.up.scheme == w.gate.scheme, op, "gate and up must have the same dtype");
  require_shape(w.down, op, "down", hidden, width);
}

}  // namespace

// Charges the time of its lifetime and `bytes` to an op.
class Backend::Scope {
 public:
  Scope(Backend* backend, Op op, int64_t bytes = 0) : profile_(backend->profile_[op]), start_(std::chrono::steady_clock::now()) {
    ++profile_.calls;
    profile_.bytes += bytes;
  }
  ~Scope() { profile_.seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count(); }

 private:
  OpProfile& profile_;
  std::chrono::steady_clock::time_point start_;
};

Scheme parse_quantization(const std::string& text) {
  for (Scheme s : {Scheme::kPlain, Scheme::kInt8, Scheme::kInt4})
    if (text == scheme_name(s)) return s;
  invalid("quantization", "expected none, int8 or int4, got \"", text, "\"");
}

Backend::Backend() { reset_profile(); }

void Backend::reset_profile() {
  for (int i = 0; i < kNumOps; ++i) profile_[i] = OpProfile{kOpNames[i]};
}

void Backend::embed(const WeightView& table, const int32_t* ids, int64_t num_rows, float* out) {
  require(!table.empty() && num_rows >= 0, "embed", "expected a table and num_rows >= 0");
  if (num_rows == 0) return;
  Scope scope(this, kEmbed, num_rows * table.row_bytes());
  do_embed(table, ids, num_rows, out);
}

void Backend::rmsnorm(const float* x, const WeightView& weight, float eps, int64_t num_rows, float* out) {
  require_shape(weight, "rmsnorm", "weight", 1, weight.cols);
  if (num_rows == 0) return;
  Scope scope(this, kRmsNorm, weight.bytes());
  do_rmsnorm(x, weight, eps, num_rows, out);
}

void Backend::linear(const float* x, int64_t num_rows, std::span<const LinearPart> parts, bool accumulate, float* out,
                     int64_t out_stride) {
  int64_t bytes = 0;
  for (const LinearPart& p : parts) {
    require_shape(p.weight, "linear", "weight", p.weight.rows, parts[0].weight.cols);
    if (!p.bias.empty()) require_shape(p.bias, "linear", "bias", 1, p.weight.rows);
    require(p.out_column >= 0 && p.out_column + p.weight.rows <= out_stride, "linear", "a part reaches past out_stride");
    bytes += p.weight.bytes();
  }
  if (num_rows == 0 || parts.empty()) return;
  Scope scope(this, kLinear, bytes);
  do_linear(x, num_rows, parts, accumulate, out, out_stride);
}

void Backend::logits(const float* x, const WeightView& weight, int64_t num_rows, float* out) {
  require_shape(weight, "logits", "weight", weight.rows, weight.cols);
  if (num_rows == 0) return;
  Scope scope(this, kLogits, weight.bytes());
  LinearPart part{weight, {}, 0};
  do_linear(x, num_rows, {&part, 1}, false, out, weight.rows);
}

void Backend::qkv_post(const QkvPostArgs& args, const BatchView& batch, const KvCacheView& cache) {
  require(args.num_heads > 0 && cache.num_kv_heads > 0 && args.num_heads % cache.num_kv_heads == 0, "qkv_post",
          "num_heads must be a positive multiple of num_kv_heads");
  require(cache.head_dim % 2 == 0, "qkv_post", "head_dim must be even for rope");
  if (!args.q_norm.empty()) require_shape(args.q_norm, "qkv_post", "q_norm", 1, cache.head_dim);
  if (!args.k_norm.empty()) require_shape(args.k_norm, "qkv_post", "k_norm", 1, cache.head_dim);
  if (batch.num_rows == 0) return;
  Scope scope(this, kQkvPost);
  do_qkv_post(args, batch, cache);
}

void Backend::attention(const float* q, int64_t q_stride, int64_t num_heads, float scale, const BatchView& batch,
                        const KvCacheView& cache, float* out) {
  require(num_heads > 0 && cache.num_kv_heads > 0 && num_heads % cache.num_kv_heads == 0, "attention",
          "num_heads must be a positive multiple of num_kv_heads");
  require(q_stride >= num_heads * cache.head_dim, "attention", "q_stride is shorter than num_heads * head_dim");
  if (batch.num_rows == 0) return;
  Scope scope(this, kAttention, attended_tokens_ * 2 * cache.num_kv_heads * cache.head_dim * dtype_size(cache.dtype));
  do_attention(q, q_stride, num_heads, scale, batch, cache, out);
}

void Backend::router(const float* x, const WeightView& weight, int64_t num_rows, float* scores) {
  require_shape(weight, "router", "weight", weight.rows, weight.cols);
  if (num_rows == 0) return;
  Scope scope(this, kRouter, weight.bytes());
  do_router(x, weight, num_rows, scores);
}

void Backend::route(const float* scores, const BatchView& batch, const RouterRule& rule, const Selection& selection,
                    Routing& routing, DispatchPlan& plan) {
  require_rule(rule, "route");
  require(batch.num_rows >= 0, "route", "num_rows must not be negative");
  require(selection.policy != Policy::kSere || selection.similarity, "route", "sere needs a similarity table");
  require(selection.policy != Policy::kAlias || selection.alias, "route", "alias needs a table");
  require(selection.policy != Policy::kReplay || selection.replay || !acts(selection, batch.phase, batch.num_rows), "route",
          "replay needs recorded ids");
  routing.num_active = 0;
  if (batch.num_rows == 0) return;
  Scope scope(this, kRoute);
  do_route(scores, batch, rule, selection, routing, plan);
}

void Backend::expert_ffn(const float* x, int64_t num_rows, std::span<const ExpertWeights> experts, const RouterRule& rule,
                         const Routing& routing, const DispatchPlan& plan, float* out) {
  require_rule(rule, "expert_ffn");
  require(int64_t(experts.size()) == rule.num_experts, "expert_ffn", "one ExpertWeights per expert is needed");
  for (const ExpertWeights& w : experts) {
    require_expert(w, "expert_ffn", experts[0].gate.rows);
    require(w.gate.dtype == experts[0].gate.dtype && w.down.dtype == experts[0].down.dtype &&
                w.gate.scheme == experts[0].gate.scheme && w.down.scheme == experts[0].down.scheme &&
                w.gate.cols == experts[0].gate.cols,
            "expert_ffn", "all experts must have the same dtypes and hidden size");
  }
  if (num_rows == 0) return;
  Scope scope(this, kExpertFfn);  // the decoder charges the bytes, which depend on the routing
  do_expert_ffn(x, num_rows, experts, rule, routing, plan, out);
}

// One expert that takes every row with weight 1.
void Backend::mlp(const float* x, int64_t num_rows, const ExpertWeights& weights, float* out) {
  require_expert(weights, "mlp", weights.gate.rows);
  if (num_rows == 0) return;
  Scope scope(this, kMlp, weights.gate.bytes() + weights.up.bytes() + weights.down.bytes());
  do_mlp(x, num_rows, weights, out);
}

void Backend::gather_rows(const float* x, std::span<const int32_t> rows, int64_t hidden_size, float* out) {
  if (!rows.empty()) do_gather_rows(x, rows, hidden_size, out);
}

void Backend::sample(const float* logits, std::span<const DrawParams> params, int64_t vocab_size, int32_t* tokens) {
  require(vocab_size >= 1, "sample", "expected a vocabulary");
  if (params.empty()) return;
  Scope scope(this, kSample);
  do_sample(logits, params, vocab_size, tokens);
}

void Backend::write(void* to, const void* from, int64_t bytes) {
  if (bytes > 0) std::memcpy(to, from, size_t(bytes));
}

void Backend::read(void* to, const void* from, int64_t bytes) {
  if (bytes > 0) std::memcpy(to, from, size_t(bytes));
}

BatchView Backend::begin_step(const BatchView& batch) {
  attended_tokens_ = 0;
  for (int64_t s = 0; s < batch.num_seqs; ++s)
    if (batch.query_start[s + 1] > batch.query_start[s]) attended_tokens_ += batch.positions[batch.query_start[s + 1] - 1] + 1;
  return do_begin_step(batch);
}

void Backend::run(const StepKey& key, const BatchView& batch, const std::function<void(const BatchView&)>& ops) {
  if (batch.num_rows > 0) do_run(key, batch, ops);
}

void Backend::end_step(std::span<SelectionStats> stats) { do_end_step(stats); }

}  // namespace lynx_rt
