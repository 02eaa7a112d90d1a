// The op contracts. A public op checks its arguments once for all backends (backend.cc), times itself under its profile
// label, and calls the private virtual that does the work. Every op is legal for T = 0 and then does nothing.
//
// Letters: T rows (tokens) of the step, H hidden size, A query heads, G key/value heads, D head size, E experts, k experts per
// token, I expert width, V vocabulary, S sequences. Activations are float32 arrays in the backend's own memory, row-major.
// The backend's compute dtype says how activations are rounded where they enter a matrix product and which dtype the KV
// cache has: float32 (no rounding), bfloat16 or float16. Accumulation is always float32.
//
// Order guarantee of every op: an output row depends on its own inputs only, and each element is reduced in one fixed order,
// whatever T, the other rows, and the number of threads are. Bitwise: tests/ops/test_batch_invariance.py. The one exception is
// select().
#pragma once
#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "backend/moe_types.h"
#include "base/tensor.h"

namespace lynx_rt {

// One layer's paged KV cache. K and V: [num_blocks, G, block_size, D] in `dtype`.
struct KvCacheView {
  void* k = nullptr;
  void* v = nullptr;
  DType dtype = DType::kF32;
  int64_t num_blocks = 0;
  int64_t block_size = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
};

// The rows of one step, flat. Rows of a sequence are consecutive and in position order.
struct BatchView {
  int64_t num_rows = 0;                   // T
  int64_t num_seqs = 0;                   // S
  const int32_t* token_ids = nullptr;     // [T]
  const int32_t* positions = nullptr;     // [T] position in the sequence, 0-based
  const int64_t* slots = nullptr;         // [T] block * block_size + offset where the row's K and V go
  const int32_t* query_start = nullptr;   // [S + 1] first row of each sequence; [S] = T
  const int32_t* block_tables = nullptr;  // [S, max_blocks] block of each page of the sequence
  int64_t max_blocks = 0;
  const uint8_t* exact = nullptr;  // [T] 1 = the row gets the model's own routing; null = none does
  Phase phase = Phase::kPrefill;
};

// out[t, out_column + n] (+)= dot(x[t], weight[n]) + bias[n]
struct LinearPart {
  WeightView weight;  // [N, K]
  WeightView bias;    // [N] or empty
  int64_t out_column = 0;
};

struct RopeTable {
  const float* cos;  // [max positions, D / 2]
  const float* sin;
};

// Arguments of qkv_post(): q/k norm, rotary embedding, KV write.
struct QkvPostArgs {
  float* qkv;         // [T, (A + 2 G) * D] in/out: q is normed and rotated in place; k and v are consumed
  int64_t num_heads;  // A
  WeightView q_norm;  // [D] or empty
  WeightView k_norm;  // [D] or empty
  float eps;
  RopeTable rope;
};

struct ExpertWeights {
  WeightView gate;  // [I, H]
  WeightView up;    // [I, H]
  WeightView down;  // [H, I]
};

// Something is wrong with one row of the step; the others are not to blame.
class RowError : public Error {
 public:
  RowError(int64_t row, ErrorCode code, std::string field, const std::string& text)
      : Error(code, std::move(field), text), row_(row) {}
  int64_t row() const { return row_; }

 private:
  int64_t row_;
};

// Time and weight/KV bytes per op since the last reset.
struct OpProfile {
  const char* name;
  int64_t calls = 0;
  double seconds = 0;
  int64_t bytes = 0;  // weights (and for attention, KV) that the calls had to read
};

// Thread-safety: one op at a time; calls come from one thread at a time.
class Backend {
 public:
  enum Op { kEmbed, kRmsNorm, kLinear, kQkvPost, kAttention, kRouter, kSelect, kDispatch, kExpertFfn, kMlp, kLogits, kNumOps };

  virtual ~Backend() = default;
  virtual std::string description() const = 0;  // "cpu avx512bf16, 2 threads, bfloat16"
  virtual DType compute_dtype() const = 0;

  // Zero-filled device memory, 64-byte aligned; throws kOutOfMemory with the size. Untouched pages cost nothing on the CPU.
  virtual void* allocate(int64_t bytes, const char* what) = 0;
  virtual void release(void* p, int64_t bytes) noexcept = 0;

  // out[t] = table[ids[t]] as float32, [T, H]. ids in [0, V), checked by the caller at the engine's boundary.
  // Cost: reads T rows. Test: tests/ops/test_elementwise.py.
  void embed(const WeightView& table, const int32_t* ids, int64_t num_rows, float* out);

  // out = x / sqrt(mean(x^2) + eps) * weight, per row of H; x and out [T, H], may be the same.
  // Source: arXiv 1910.07467 eq. 4; config key rms_norm_eps. Test: tests/ops/test_elementwise.py.
  void rmsnorm(const float* x, const WeightView& weight, float eps, int64_t num_rows, float* out);

  // For each part: out[t, out_column + n] (+)= dot(round(x[t]), weight[n]) + bias[n]; x [T, K], out row stride `out_stride`.
  // accumulate adds to out (the residual). Reads each weight once per call for small T. Test: tests/ops/test_linear.py.
  void linear(const float* x, int64_t num_rows, std::span<const LinearPart> parts, bool accumulate, float* out,
              int64_t out_stride);

  // Per head: RMSNorm of q and k over D (when the weights are given), rotation of the halves (x1, x2) by the position's
  // angles, k and v stored to their slots in the cache's dtype. Source: arXiv 2104.09864 eq. 34 in the half-split layout of
  // transformers. Test: tests/ops/test_attention.py.
  void qkv_post(const QkvPostArgs& args, const BatchView& batch, const KvCacheView& cache);

  // Causal attention of every row over positions 0..its own, through the pages. q is read from qkv rows of stride
  // q_stride; query head a uses kv head a / (A / G). out [T, A * D]. softmax(scale * q.k) in float32.
  // Cost: reads each sequence's K and V once per row block. Test: tests/ops/test_attention.py.
  void attention(const float* q, int64_t q_stride, int64_t num_heads, float scale, const BatchView& batch,
                 const KvCacheView& cache, float* out);

  // scores[t, e] = dot(x[t], weight[e]), x unrounded; x [T, H], weight [E, H], scores [T, E]. Test: tests/ops/test_select.py.
  void router(const float* x, const WeightView& weight, int64_t num_rows, float* scores);

  // Chooses experts and weights: the only op that looks across the batch. Demand -> Admit -> Assign -> Weigh.
  //   scores [T, E] in    router logits, finite; exact [T] in or null
  //   routing       out   ids in rank order (rising rank, ties to the lower expert), weights, active list
  // With policy topk, phase other than kDecodeOnly, T < 2, or every row exact: the model's own routing, whatever the other rows
  // are. Otherwise: exact rows get their own routing and all their experts are admitted; the others are assigned within the
  // admitted set; weights come from the original softmax rescaled to the row's own top-k mass; where the active set
  // would not be smaller than the union of own choices, the own routing is returned (guard).
  // Throws RowError (kInvalidArgument) naming row and expert for a NaN or infinite score. Source: LYNX arXiv 2411.08982, OEA
  // arXiv 2511.02237. Tests: tests/ops/test_select.py, test_select_properties.py.
  SelectionStats select(const float* scores, int64_t num_rows, const RouterRule& rule, const Selection& selection, Phase phase,
                        const uint8_t* exact, Routing& routing);

  // Orders the pairs by expert (ascending pair inside an expert). Cost O(T k + E). Test: tests/ops/test_dispatch.py.
  void dispatch(const Routing& routing, int64_t num_rows, const RouterRule& rule, DispatchPlan& plan);

  // out[t] += sum_j weights[t, j] * down(silu(gate(x[t])) * up(x[t])) over slots j in order, skipping id -1; x, out [T, H].
  // Each active expert's weights are read once. Source: SwiGLU, arXiv 2002.05202 eq. 6. Test: tests/ops/test_expert_ffn.py.
  void expert_ffn(const float* x, int64_t num_rows, std::span<const ExpertWeights> experts, const RouterRule& rule,
                  const Routing& routing, const DispatchPlan& plan, float* out);

  // The dense MLP: out[t] += down(silu(gate(x[t])) * up(x[t])). Test: tests/ops/test_expert_ffn.py.
  void mlp(const float* x, int64_t num_rows, const ExpertWeights& weights, float* out);

  // logits[t, v] = dot(round(x[t]), weight[v]); [T, V]. linear() under its own label. Test: tests/ops/test_linear.py.
  void logits(const float* x, const WeightView& weight, int64_t num_rows, float* out);

  std::span<const OpProfile> profile() const { return profile_; }
  void reset_profile();

 protected:
  Backend();

 private:
  virtual void do_embed(const WeightView&, const int32_t*, int64_t, float*) = 0;
  virtual void do_rmsnorm(const float*, const WeightView&, float, int64_t, float*) = 0;
  virtual void do_linear(const float*, int64_t, std::span<const LinearPart>, bool, float*, int64_t) = 0;
  virtual void do_qkv_post(const QkvPostArgs&, const BatchView&, const KvCacheView&) = 0;
  virtual void do_attention(const float*, int64_t, int64_t, float, const BatchView&, const KvCacheView&, float*) = 0;
  virtual void do_router(const float*, const WeightView&, int64_t, float*) = 0;
  virtual SelectionStats do_select(const float*, int64_t, const RouterRule&, const Selection&, Phase, const uint8_t*,
                                   Routing&) = 0;
  virtual void do_dispatch(const Routing&, int64_t, const RouterRule&, DispatchPlan&) = 0;
  virtual void do_expert_ffn(const float*, int64_t, std::span<const ExpertWeights>, const RouterRule&, const Routing&,
                             const DispatchPlan&, float*) = 0;
  virtual void do_mlp(const float*, int64_t, const ExpertWeights&, float*) = 0;

  class Scope;
  std::array<OpProfile, kNumOps> profile_;
};

struct BackendOptions {
  std::string device = "auto";  // "auto" (cuda where there is one, else cpu), "cpu"
  DType compute_dtype = DType::kF32;
  int num_threads = 0;  // 0 = usable_cores()
  std::string isa;      // see resolve_isa()
};

// Throws kUnsupported for a device this build lacks, saying how to get it; kInvalidArgument for an unknown one.
std::unique_ptr<Backend> make_backend(const BackendOptions& options);

}  // namespace lynx_rt
