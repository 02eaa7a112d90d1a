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
// route().
//
// Ops pass two kinds of values on to each other. Activations are written by norms and attention() and read by products; they hold
// the rows in the form that the backend's products read, beside the float32 values. A PendingSum is what expert_ffn() leaves to the
// norm that follows: until a norm or combine() has taken it, every other op, read() and write() throw kInternal.
//
// A backend on a device queues its ops and returns; read() and end_step() wait for them. Ops take weights as the place functions
// left them, and the batch that begin_step() returned.
#pragma once
#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "backend/attention_args.h"
#include "backend/backend_options.h"
#include "backend/expert_table.h"
#include "backend/ffn_rule.h"
#include "backend/gated_delta.h"
#include "backend/mamba2.h"
#include "backend/pending_sum.h"
#include "backend/sampling.h"
#include "backend/step_limits.h"
#include "base/tensor.h"
#include "routing/policy.h"
#include "routing/routing.h"
#include "routing/rule.h"

namespace lynx_rt {

class Activations;  // device_array.h

// One layer's paged KV cache. K: [num_blocks, G, block_size, D], V: [num_blocks, G, block_size, Dv] in `dtype`.
struct KvCacheView {
  void* k = nullptr;
  void* v = nullptr;  // null: a token's V is the first Dv columns of its K (MLA)
  DType dtype = DType::kF32;
  int64_t num_blocks = 0;
  int64_t block_size = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;    // D
  int64_t v_head_dim = 0;  // Dv; 0 = D

  int64_t v_columns() const { return v_head_dim ? v_head_dim : head_dim; }
};

// The entry of a block table for a page that has been given back, since no row sees its keys any more. Ops do not read such a page: its
// address would be far outside of the cache, so that a read of it ends the program.
inline constexpr int32_t kFreedBlock = INT32_MIN;

// The rows of one step, flat. Rows of a sequence are consecutive and in position order.
struct BatchView {
  int64_t num_rows = 0;                   // T
  int64_t num_seqs = 0;                   // S
  const int32_t* token_ids = nullptr;     // [T]
  const int32_t* positions = nullptr;     // [T] position in the sequence, 0-based
  const int32_t* rope_rows = nullptr;     // [T] row of the rope tables; null = positions. Images advance it otherwise (M-RoPE)
  const int64_t* slots = nullptr;         // [T] block * block_size + offset where the row's K and V go
  const int32_t* query_start = nullptr;   // [S + 1] first row of each sequence; [S] = T
  const int32_t* block_tables = nullptr;  // [S, max_blocks] block of each page of the sequence, or kFreedBlock
  int64_t max_blocks = 0;
  // Layers may keep different pages of a sequence. Then there are as many `slots` and `block_tables`, one behind the other; ops read the
  // first ones: with_pages() is what a layer of another group gives them.
  int64_t num_page_groups = 1;
  const int32_t* state_slots = nullptr;  // [S] slot of the sequence's states (StateView); null where no layer has a state
  const uint8_t* exact = nullptr;        // [T] 1 = the row always gets the model's own routing; null = no such row
  // [T] number of the row's isolation group, from 0 on without a gap; null = one group. Experts are selected for each group as if its
  // rows were alone in the batch.
  const int32_t* groups = nullptr;
  bool isolated = false;          // some row's request has an isolation group: residents, which others chose, are not looked at
  int64_t heads_per_kv_head = 0;  // A / G of the step's attention; 0 = that of StepLimits
  Phase phase = Phase::kPrefill;
  // [MoE layers, T, k] recorded ids, where a layer's policy is replay. Selection::replay points to one layer's ids.
  const int32_t* replayed = nullptr;

  const int32_t* rope() const { return rope_rows ? rope_rows : positions; }
  BatchView with_pages(int64_t group) const {
    BatchView view = *this;
    view.num_page_groups = 1;
    view.slots += group * num_rows;
    view.block_tables += group * num_seqs * max_blocks;
    return view;
  }
};

// out[t, out_column + n] (+)= dot(x[t], weight[n]) + bias[n]
struct LinearPart {
  WeightView weight;  // [N, K]
  WeightView bias;    // [N] or empty
  int64_t out_column = 0;
};

// Matrices of the same shape [N, K], one per head.
using HeadWeights = std::span<const WeightView>;

// The op that uses a weight.
enum class WeightUse : uint8_t {
  kVector,  // norm weights, biases, sinks
  kEmbed,   // embed()
  kMatrix,  // linear()
  kHead,    // logits()
  kRouter,  // router()
  kExpert,  // expert_ffn(), mlp(): placed by place_experts()
};

// Identifies, together with the sizes of the batch, which ops a step runs on which memory.
struct StepKey {
  const std::string& selection;  // names the selections of all layers, tables included
  const void* cache = nullptr;   // K of the first layer
};

// Pointers to Activations that a backend's op reads or writes.
struct RowsIn {
  const float* f32;     // [T, columns]
  const void* rounded;  // T rows of rounded_row_bytes(columns); null: the product rounds f32 itself
};
struct RowsOut {
  float* f32;
  void* rounded;  // null where rounded_row_bytes() is 0
};

// Time and weight/KV bytes per op since the last reset.
struct OpProfile {
  const char* name;
  int64_t calls = 0;
  double seconds = 0;  // time on the host; where a device runs the ops, the time to queue them
  int64_t bytes = 0;   // weights (and for attention, KV) that the calls had to read
};

// Thread-safety: one op at a time; calls come from one thread at a time.
class Backend {
 public:
  enum Op {
    kEmbed,
    kRmsNorm,
    kLayerNorm,
    kLinear,
    kHeadLinear,
    kQkvPost,
    kMlaPost,
    kAttention,
    kGatedDelta,
    kMamba2,
    kShortConv,
    kRouter,
    kRoute,
    kExpertFfn,
    kMlp,
    kLogits,
    kSample,
    kNumOps
  };

  virtual ~Backend() = default;
  virtual std::string description() const = 0;  // "cpu avx512bf16, 2 threads, bfloat16"
  virtual DType compute_dtype() const = 0;

  // Zero-filled device memory, 64-byte aligned; throws kOutOfMemory with the size. Untouched pages cost nothing on the CPU.
  virtual void* allocate(int64_t bytes, const char* what) = 0;
  virtual void release(void* p, int64_t bytes) noexcept = 0;
  // The most bytes that a KV cache may take: `chosen` where the user gave no size, `free` where the user did.
  struct MemoryBudget {
    int64_t chosen, free;
  };
  virtual MemoryBudget memory_budget() const = 0;
  // Whether the host may use allocate()'s memory directly.
  virtual bool host_memory() const { return true; }
  // Copies between the host and allocate()'s memory, in order with the ops. `from` may be reused when write() returns. read()
  // returns when `to` is filled.
  void write(void* to, const void* from, int64_t bytes);
  void read(void* to, const void* from, int64_t bytes);
  // Copies within allocate()'s memory, in order with the ops; the two ranges do not overlap.
  void copy(void* to, const void* from, int64_t bytes);
  // Bytes of a row of Activations beside its float32 values; 0 where products read the float32 values.
  virtual int64_t rounded_row_bytes(int64_t /*num_columns*/) const { return 0; }

  // Copies a weight to the backend's memory, in the layout that its ops read, where that differs from what is given: the CPU uses
  // plain weights where they are. The returned view stays valid as long as the backend. Throws kOutOfMemory; kUnsupported for a
  // dtype without a kernel.
  virtual WeightView place(const WeightView& weight, WeightUse) { return weight; }
  // As place(), but replace the views: of all experts of a layer (or of a dense MLP, as one expert), and of head_linear()'s matrices.
  virtual void place_experts(std::span<ExpertWeights>) {}
  virtual void place_heads(std::span<WeightView>) {}
  // Takes `size` bytes at the start of a weight's data, with all that its view points to: a product's weight that was placed as it is,
  // and that took work to make. Moves them to the file of BackendOptions::quantization_cache, or finds them there, and returns the
  // view of them; without that file, returns the view.
  virtual WeightView keep(const WeightView& weight, int64_t /*size*/) { return weight; }
  // Returns the table of a layer's experts, which place_experts() has placed; it is valid as long as the backend. Throws
  // kInvalidArgument (field experts) where an expert's shapes do not fit the first one's; kUnsupported for a format without a kernel.
  ExpertTable expert_table(std::span<const ExpertWeights> experts);
  // Returns the table of a layer of a store, which outlives the table. Throws kUnsupported where the backend takes no store.
  ExpertTable expert_table(ExpertStore& store, int64_t layer);
  // Backends on a device: keeps the experts that place_experts() is then called for in host memory, those of MLPs excepted, and as many
  // of them as there is room for on the device too. Ops find them wherever they are, with the same results. route() then knows what
  // experts cost, and needs no `cost`. end_step() decides which experts are where in the next step. Throws kUnsupported (fields
  // expert_memory, expert_policy), kOutOfMemory.
  virtual void tier_experts(const ExpertTierOptions& options);
  // Returns the bytes of the device's memory that an expert takes, without its biases. Call it before the expert is placed.
  virtual int64_t expert_bytes(const ExpertWeights& expert) const { return expert.bytes(); }
  virtual std::optional<ExpertStoreStats> tier_stats() const { return std::nullopt; }  // empty without tier_experts()
  virtual void reset_tier_stats() {}
  // Throws kInternal where the records of tier_experts() contradict themselves.
  virtual void check_integrity() const {}
  // Whether a weight of this use may be in blocks (QuantFormat::kBlocks), of the code and the type of scales of `rows`.
  virtual bool takes_blocks(WeightUse, const BlockRows& /*rows*/) const { return false; }
  // Whether place functions and keep() read the values of products' weights: those for kMatrix and kHead, those of experts and of
  // heads. They do not where an earlier run left the result in a file (BackendOptions::quantization_cache).
  virtual bool reads_products() const { return true; }
  // Whether data of a placed weight lies in a file that the backend has mapped.
  virtual bool is_mapped(const void* /*data*/) const { return false; }
  // Throws kCorruptFile where a file whose weights the backend uses was written to or cut off.
  virtual void check_files() const {}
  // Allocates scratch memory. Called after all weights are placed and before the first step.
  virtual void reserve(const StepLimits&) {}
  // The most rows of a step in which a batch-aware policy can act.
  virtual int64_t max_selection_rows() const { return INT32_MAX; }

  // Starts a step. `batch` is in host memory. Returns the view that the ops take, which may have more rows than `batch`: the added
  // rows store no K and V, are not routed, and get zeros from attention(). Both views stay valid until the next begin_step().
  BatchView begin_step(const BatchView& batch);
  // Calls ops(batch), which calls ops of this backend. A backend may record the ops of a decode-only step and repeat the recording
  // instead of calling `ops` in later steps of the same key and sizes, so the ops' memory must stay where it is.
  void run(const StepKey& key, const BatchView& batch, const std::function<void(const BatchView&)>& ops);
  // Waits for the step, after which sample()'s tokens can be read. Writes the counters of the step's route() calls to `stats`, in
  // order; it has one entry per call, or none. Throws RowError for a row with a non-finite router score, unless route() has thrown.
  void end_step(std::span<SelectionStats> stats);

  // out[t] = scale * table[ids[t]] as float32, [T, H]. ids in [0, V), checked by the caller at the engine's boundary.
  // Cost: reads T rows. Test: tests/ops/test_elementwise.py.
  void embed(const WeightView& table, const int32_t* ids, int64_t num_rows, float* out, float scale = 1);

  // Adds the pending sum, if any, to x; then out = x / sqrt(mean(x^2) + eps) * weight, per row of H. x [T, H] must not overlap out.
  // `pending` must be of the same rows. Source: arXiv 1910.07467 eq. 4; config key rms_norm_eps.
  // Test: tests/ops/test_elementwise.py.
  void rmsnorm(const float* x, const WeightView& weight, float eps, int64_t num_rows, Activations& out, PendingSum pending = {});

  // Adds the pending sum, if any, to y; then x = (x + y / sqrt(mean(y^2) + eps) * weight) * scale per row of H, without the x in the
  // brackets unless `accumulate`. scale: one value, empty = 1. y [T, H] and x [T, H] do not overlap. It is rmsnorm() of what a block
  // adds to the residual stream (Gemma), under rmsnorm()'s profile label. Test: tests/ops/test_elementwise.py.
  void add_rmsnorm(const float* y, const WeightView& weight, float eps, int64_t num_rows, bool accumulate, float* x,
                   const WeightView& scale = {}, PendingSum pending = {});

  // Does what rmsnorm() does, with out = (x - mean(x)) / sqrt(variance(x) + eps) * weight + bias.
  // Source: arXiv 1607.06450 eq. 4. Test: tests/ops/test_elementwise.py.
  void layernorm(const float* x, const WeightView& weight, const WeightView& bias, float eps, int64_t num_rows, Activations& out,
                 PendingSum pending = {});

  // Adds the pending sum, if any, to its rows, where no norm follows that would add it. Test: tests/cpp/test_op_contract.cc.
  void combine(PendingSum pending);

  // For each part: out[t, out_column + n] (+)= scale * (dot(round(x[t]), weight[n]) + bias[n]); x [T, K], out row stride
  // `out_stride`. accumulate adds to out (the residual). Reads each weight once per call for small T.
  // Test: tests/ops/test_linear.py.
  void linear(const Activations& x, std::span<const LinearPart> parts, bool accumulate, float* out, int64_t out_stride,
              float scale = 1);

  // Multiplies each head with its own matrix: out[t, a * out_head + n] = dot(round(x[t, a * x_head .. + K]), weights[a][n]) for
  // n < N. Rows of out have stride out_stride; out must not overlap x. Test: tests/ops/test_attention_variants.py.
  void head_linear(const Activations& x, int64_t x_head, HeadWeights weights, float* out, int64_t out_stride, int64_t out_head);

  // Applies q/k norm, clamping and rotation as QkvPostArgs says, and stores k and v to their slots in the cache's dtype. A pair of
  // columns is rotated by the angle of its row of the rope table: (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin). Source: arXiv 2104.09864 eq. 34.
  // Test: tests/ops/test_attention.py.
  void qkv_post(const QkvPostArgs& args, const BatchView& batch, const KvCacheView& cache);

  // Prepares multi-head latent attention: RMSNorm of the latent, rotation of the key columns and of each query head's last R
  // columns. Stores [latent, key columns] to the row's slot as K of the one kv head. Source: arXiv 2405.04434 section 2.1.2-2.1.3.
  // Test: tests/ops/test_attention.py.
  void mla_post(const MlaPostArgs& args, const BatchView& batch, const KvCacheView& cache);

  // Attention of every row over the keys that AttentionArgs names, read from the cache's pages. Query head a uses kv head
  // a / (A / G); softmax(scale * q.k) is in float32, but its weights may meet V in bf16 where not causal. out [T, A * Dv].
  // Cost: reads each sequence's K and V once per row block. Test: tests/ops/test_attention.py.
  void attention(const AttentionArgs& args, const BatchView& batch, const KvCacheView& cache, Activations& out);

  // Gated DeltaNet: convolution, gates, delta rule and gated norm; out [T, vh * dv]. The rows of each sequence go on from its state, the
  // matrices S [vh, dk, dv] and then the last inputs [W - 1, C] of the convolution, oldest first, and leave it after the last row.
  //   q, k, v   silu(sum_j conv[j] * input[t - W + 1 + j]); q and k are then divided by sqrt(sum of squares + 1e-6) per head, q by sqrt(dk)
  //   S         decay * S, decay = exp(rate * softplus(a + dt_bias)); then S += k u^T, u = sigmoid(b) * (v - S^T k)
  //   out       rmsnorm(S^T q) * norm * silu(z), or sigmoid(z), per value head
  // With DeltaShape::channel_decay, row d of S has the decay of column d of a (Kimi delta attention, arXiv 2510.26692).
  // The rule is computed row by row, so that a row has the same bits however a sequence is cut into steps. Source: arXiv 2412.06464.
  // Cost: reads and writes the states once per call, 7 dk dv vh operations per row. Test: tests/ops/test_gated_delta.py.
  void gated_delta_rule(const GatedDeltaArgs& args, const BatchView& batch, const StateView& states, Activations& out);

  // Mamba2: convolution, selective scan and gated norm; out [T, A P]. States as those of gated_delta_rule(): S [A, N, P], then the last
  // inputs [W - 1, C] of the convolution.
  //   x, B, C   silu(conv_bias + sum_j conv[j] * input[t - W + 1 + j])
  //   S         exp(rate * dt) * S + B (dt * x)^T, dt = min(max(softplus(dt + dt_bias), min_dt), max_dt); head h has B, C of group h / (A / g)
  //   out       rmsnorm((S^T C + skip * x) * silu(z)) * norm, the norm over the columns of a group
  // The scan is computed row by row, as gated_delta_rule(). Source: arXiv 2405.21060 section 7.
  // Cost: reads and writes the states once per call, 5 N P A operations per row. Test: tests/ops/test_mamba2.py.
  void mamba2(const Mamba2Args& args, const BatchView& batch, const StateView& states, Activations& out);

  // out[t] = c[t] * (bias + sum_j conv[j] * (b * x)[t - W + 1 + j]), by columns, [T, H]. The state is the last inputs b * x [W - 1, H],
  // oldest first. Source: transformers' lfm2_moe. Test: tests/ops/test_mamba2.py.
  void short_conv(const ShortConvArgs& args, const BatchView& batch, const StateView& states, Activations& out);

  // scores[t, e] = scale * dot(x[t], weight[e]) + bias[e], x unrounded; x [T, H], weight [E, H], bias [E] or empty, scores [T, E].
  // Test: tests/ops/test_select.py.
  void router(const float* x, const WeightView& weight, const WeightView& bias, int64_t num_rows, float* scores, float scale = 1);

  // Chooses each row's experts and their weights, and orders the (row, expert) pairs by expert. It is the only op in which a row's
  // result may depend on other rows. Stages: demand, admit, assign, weigh, dispatch.
  //   scores [T, E] in    router logits, finite
  //   batch         in    phase, exact and groups
  //   rule          in    how the model itself routes: RouterRule
  //   selection     in    the layer's policy, which check_selection() accepts, with the table that it reads
  //   routing       out   ids in rank order (rising rank, ties to the lower expert), weights, active list
  //   cost [E]      in    what each expert costs: 0 = its weights are in memory, else a read; empty = nothing is known
  //   plan          out   pairs ordered by expert, ascending inside an expert
  // Every row gets the model's own routing, which depends on no other row, if acts() is false or all rows are exact. Otherwise
  // rows are routed as routing/selector.h says for each policy: exact rows keep their own routing, and all rows keep it where the
  // step would not read fewer experts (guard). With isolation groups, all of this is done for each group by itself, and the active list
  // is that of all of them.
  // Throws RowError (kInvalidArgument) naming row and expert for a NaN or infinite score, here or at end_step(). Sources: with
  // the policies in routing/policy.h. Cost O(T (E + k)). Tests: tests/ops/test_select.py, test_select_properties.py,
  // test_policies.py, test_router_kinds.py, test_dispatch.py.
  void route(const float* scores, const BatchView& batch, const RouterRule& rule, const Selection& selection, Routing& routing,
             DispatchPlan& plan, std::span<const uint8_t> cost = {});

  // out[t] += sum_j weights[t, j] * f(x[t]) over choices j in order, skipping id -1; f(x) = down(activation(gate(x), up(x))) with
  // the expert's biases, or down(activation(gate(x))) where it has no up. With ffn.scale_input the term is f(weights[t, j] * x[t]). Without `accumulate`, out[t] is the sum alone. x, out
  // [T, H]. routing and plan are those of the last route(). A backend may leave the sum undone: give the result to the norm of out
  // that follows, or to combine(). Each active expert's weights are read once, each in its own format.
  // Test: tests/ops/test_expert_ffn.py.
  PendingSum expert_ffn(const Activations& x, const ExpertTable& experts, const RouterRule& rule, const FfnRule& ffn,
                        const Routing& routing, const DispatchPlan& plan, float* out, bool accumulate = true);

  // The dense MLP, or a shared expert: out[t] (+)= scale * s * down(activation(gate(x[t]), up(x[t]))), with biases. s =
  // sigmoid(dot(x[t], row_gate)), x unrounded, where row_gate [1, H] is not empty, else 1. The activation has no parameters. down
  // may have other rows than H, say N: rows of out have N columns, and the stride out_stride, 0 = N.
  // Test: tests/ops/test_expert_ffn.py.
  void mlp(const Activations& x, const ExpertWeights& weights, const WeightView& row_gate, float* out,
           Activation activation = Activation::kSilu, bool accumulate = true, float scale = 1, int64_t out_stride = 0);

  // logits[t, v] = scale * (dot(round(x[t]), weight[v]) + bias[v]); [T, V]. Then, for soft_cap > 0, soft_cap * tanh(logit / soft_cap).
  // It is linear() with a profile label of its own. Test: tests/ops/test_linear.py.
  void logits(const Activations& x, const WeightView& weight, const WeightView& bias, float scale, float* out,
              float soft_cap = 0);

  // out[i] = x[rows[i]], rows of H floats; `rows` is in host memory. Test: tests/model (logits of chosen rows).
  void gather_rows(const float* x, std::span<const int32_t> rows, int64_t hidden_size, float* out);

  // x[i] = from[i], or x[i] += from[i] with `accumulate`, for num_rows rows of num_columns floats; rows of `from` have stride from_stride
  // and do not overlap x. Puts what a vision tower says of an image in place of its tokens' embeddings.
  // Test: tests/ops/test_elementwise.py.
  void set_rows(const float* from, int64_t from_stride, int64_t num_rows, int64_t num_columns, bool accumulate, float* x);

  // tokens[i] = what TokenDrawer::draw() (sampling.h) returns for logits row i, params[i] and row params[i].mask_row of `masks`:
  // a token or an error value, kNoToken where the mask is all zero. logits [params.size(), V] in the backend's memory; masks
  // [at most params.size(), token_mask_words(V)], params and tokens in host memory. Read the tokens after end_step().
  // Tests: tests/engine/test_sampler.py, tests/cpp/test_sampling.cc, tests/simt/test_sample.cc.
  void sample(const float* logits, std::span<const DrawParams> params, std::span<const int32_t> masks, int64_t vocab_size,
              int32_t* tokens);

  std::span<const OpProfile> profile() const { return profile_; }
  // Adds weight bytes to an op's profile that are known only at the end of a step.
  void charge(Op op, int64_t bytes) { profile_[op].bytes += bytes; }
  void reset_profile();

 protected:
  Backend();

  std::array<OpProfile, kNumOps> profile_;
  int64_t attended_tokens_ = 0;  // positions that the step's sequences attend to, in all

 private:
  virtual void do_embed(const WeightView&, const int32_t*, int64_t, float*, float scale) = 0;
  virtual void do_rmsnorm(const float*, const WeightView&, float, int64_t, const RowsOut&, const ExpertSum&) = 0;
  virtual void do_add_rmsnorm(const float* y, const WeightView&, float, int64_t, bool accumulate, float* x,
                              const WeightView& scale, const ExpertSum&) = 0;
  virtual void do_layernorm(const float*, const WeightView& weight, const WeightView& bias, float, int64_t, const RowsOut&,
                            const ExpertSum&) = 0;
  virtual void do_combine(float*, int64_t num_rows, const ExpertSum&) = 0;
  virtual void do_linear(const RowsIn&, int64_t num_rows, std::span<const LinearPart>, bool, float*, int64_t, float scale) = 0;
  virtual void do_head_linear(const RowsIn&, int64_t x_stride, int64_t x_head, int64_t num_rows, HeadWeights, float*,
                              int64_t out_stride, int64_t out_head) = 0;
  virtual void do_qkv_post(const QkvPostArgs&, const BatchView&, const KvCacheView&) = 0;
  virtual void do_mla_post(const MlaPostArgs&, const BatchView&, const KvCacheView&) = 0;
  virtual void do_attention(const AttentionArgs&, const BatchView&, const KvCacheView&, const RowsOut&) = 0;
  virtual void do_gated_delta(const GatedDeltaArgs&, const BatchView&, const StateView&, const RowsOut&) = 0;
  virtual void do_mamba2(const Mamba2Args&, const BatchView&, const StateView&, const RowsOut&) = 0;
  virtual void do_short_conv(const ShortConvArgs&, const BatchView&, const StateView&, const RowsOut&) = 0;
  virtual void do_router(const float*, const WeightView& weight, const WeightView& bias, int64_t, float*, float scale) = 0;
  virtual void do_route(const float*, const BatchView&, const RouterRule&, const Selection&, Routing&, DispatchPlan&,
                        const uint8_t* cost) = 0;
  // Checks formats; returns ExpertTable::entries().
  virtual const void* do_expert_table(std::span<const ExpertWeights>) = 0;
  // Returns the sum that is left to add; an empty one where everything has been added.
  virtual ExpertSum do_expert_ffn(const RowsIn&, int64_t num_rows, const ExpertTable&, const RouterRule&, const FfnRule&,
                                  const Routing&, const DispatchPlan&, float*, bool accumulate) = 0;
  virtual void do_mlp(const RowsIn&, int64_t num_rows, const ExpertWeights&, const WeightView& row_gate, float*, Activation,
                      bool accumulate, float scale, int64_t out_stride) = 0;
  virtual void do_soft_cap(float* values, int64_t count, float cap) = 0;  // in place
  virtual void do_gather_rows(const float*, std::span<const int32_t>, int64_t, float*) = 0;
  virtual void do_set_rows(const float*, int64_t from_stride, int64_t num_rows, int64_t num_columns, bool accumulate, float*) = 0;
  virtual void do_sample(const float*, std::span<const DrawParams>, std::span<const int32_t>, int64_t, int32_t*) = 0;
  virtual BatchView do_begin_step(const BatchView& batch) { return batch; }
  virtual void do_run(const StepKey&, const BatchView& batch, const std::function<void(const BatchView&)>& ops) { ops(batch); }
  virtual void do_end_step(std::span<SelectionStats>) = 0;
  virtual void do_write(void* to, const void* from, int64_t bytes);
  virtual void do_read(void* to, const void* from, int64_t bytes);
  virtual void do_copy(void* to, const void* from, int64_t bytes);

  class Scope;
  void require_none_pending(const char* op) const;
  // Returns the sum that an op on rows x is to add, after which nothing is pending. Throws kInternal where it is for other rows.
  ExpertSum take(PendingSum& pending, const char* op, const float* x, int64_t num_rows);
  RowsIn rows_in(const Activations& x, const char* op, int64_t num_columns) const;
  RowsOut rows_out(Activations& x, const char* op, int64_t num_rows, int64_t num_columns) const;

  bool pending_ = false;  // a PendingSum has not been taken yet
};

}  // namespace lynx_rt
