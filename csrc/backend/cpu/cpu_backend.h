// The CPU backend. Ops are in the .cc files of this folder, their inner loops in kernels/; all share one thread pool.
#pragma once
#include <vector>

#include "backend/backend.h"
#include "backend/cpu/core_meter.h"
#include "backend/cpu/kernels/kernels.h"
#include "backend/cpu/product.h"
#include "backend/cpu/scratch.h"
#include "backend/cpu/weight_store.h"
#include "base/thread_pool.h"
#include "routing/selector.h"

namespace lynx_rt {

class CpuBackend : public Backend {
 public:
  explicit CpuBackend(const BackendOptions& options) : CpuBackend(options, plan_computing(options.num_threads)) {}
  CpuBackend(const BackendOptions& options, const ThreadPlan& plan);

  std::string description() const override;
  DType compute_dtype() const override { return compute_dtype_; }
  void* allocate(int64_t bytes, const char* what) override;
  void release(void* p, int64_t bytes) noexcept override;
  MemoryBudget memory_budget() const override;
  WeightView place(const WeightView& weight, WeightUse use) override;
  void place_experts(std::span<ExpertWeights> experts) override;
  WeightView keep(const WeightView& weight, int64_t size) override;
  bool is_mapped(const void* data) const override { return store_.is_mapped(data); }
  void check_files() const override { store_.check_unchanged(); }
  bool takes_blocks(WeightUse, const BlockRows&) const override { return true; }
  bool reads_products() const override { return !store_.filled(); }
  void reserve(const StepLimits& limits) override;
  // Frees the memory of all placed weights, whose views must not be used any more.
  void release_placed() { store_.clear(); }

 private:
  void do_embed(const WeightView&, const int32_t*, int64_t, float*, float) override;
  void do_rmsnorm(const float*, const WeightView&, float, int64_t, const RowsOut&, const ExpertSum&) override;
  void do_add_rmsnorm(const float*, const WeightView&, float, int64_t, bool, float*, const WeightView&,
                      const ExpertSum&) override;
  void do_layernorm(const float*, const WeightView&, const WeightView&, float, int64_t, const RowsOut&,
                    const ExpertSum&) override;
  void do_combine(float*, int64_t, const ExpertSum&) override {}  // do_expert_ffn() adds everything
  void do_linear(const RowsIn&, int64_t, std::span<const LinearPart>, bool, float*, int64_t, float) override;
  void do_head_linear(const RowsIn&, int64_t, int64_t, int64_t, HeadWeights, float*, int64_t, int64_t) override;
  void do_qkv_post(const QkvPostArgs&, const BatchView&, const KvCacheView&) override;
  void do_mla_post(const MlaPostArgs&, const BatchView&, const KvCacheView&) override;
  void do_attention(const AttentionArgs&, const BatchView&, const KvCacheView&, const RowsOut&) override;
  void do_gated_delta(const GatedDeltaArgs&, const BatchView&, const StateView&, const RowsOut&) override;
  void do_mamba2(const Mamba2Args&, const BatchView&, const StateView&, const RowsOut&) override;
  void do_short_conv(const ShortConvArgs&, const BatchView&, const StateView&, const RowsOut&) override;
  void do_router(const float*, const WeightView&, const WeightView&, int64_t, float*, float) override;
  bool takes_cost() const override { return true; }
  void do_route(const float*, const BatchView&, const RouterRule&, const Selection&, Routing&, DispatchPlan&,
                const uint8_t* cost) override;
  const void* do_expert_table(std::span<const ExpertWeights>) override;
  ExpertSum do_expert_ffn(const RowsIn&, int64_t, const ExpertTable&, const RouterRule&, const FfnRule&, const Routing&,
                          const DispatchPlan&, float*, bool accumulate) override;
  void do_mlp(const RowsIn&, int64_t, const ExpertWeights&, const WeightView&, float*, Activation, bool accumulate, float scale,
              int64_t out_stride) override;
  void do_soft_cap(float*, int64_t count, float cap) override;
  void do_gather_rows(const float*, std::span<const int32_t>, int64_t, float*) override;
  void do_set_rows(const float*, int64_t from_stride, int64_t num_rows, int64_t num_columns, bool accumulate, float*) override;
  void do_sample(const float*, std::span<const DrawParams>, std::span<const int32_t>, int64_t, int32_t*) override;
  BatchView do_begin_step(const BatchView& batch) override;
  void do_end_step(std::span<SelectionStats>) override;

  // Query rows of one sequence that read its pages together, and the number of their first span of keys among those of the call.
  struct AttentionTile {
    int64_t seq, first, rows, first_task;
  };
  struct AttentionCall;
  // Experts whose weights can be read, of a product whose rows are packed.
  struct ExpertCall;
  // The common part of expert_ffn() and mlp(). Experts may have different formats. `store`: has leased them; null: all are there.
  void run_experts(const RowsIn&, int64_t num_rows, std::span<const ExpertWeights>, int64_t top_k, const FfnRule&, const Routing&,
                   const DispatchPlan&, float* out, int64_t out_stride, bool accumulate, ExpertStore* store = nullptr);
  void gate_up(const ExpertCall&, std::span<const int32_t> list);
  void down(const ExpertCall&, std::span<const int32_t> list);
  void rotate(float* head, const RopeTable& rope, int64_t position) const;
  void store(const float* row, int64_t columns, void* base, const KvCacheView& cache, int64_t width, int64_t head,
             int64_t slot) const;
  int64_t sum_columns(const KvCacheView& cache) const;
  int64_t state_size(const KvCacheView& cache) const;
  void attend_span(const AttentionCall&, const AttentionTile&, int64_t head, int64_t span, int thread, float* states);
  void merge_span(const AttentionCall&, const AttentionTile&, const float* states, float* merged);
  // Writes the rows of a tile from their merged states, whose sums are in split pairs, or not.
  void finish_rows(const AttentionCall&, const AttentionTile&, int64_t head, int thread, bool pairs, float* states);
  void attend_fully(const AttentionCall&);
  template <class Form>
  void attend_tile_fully(const AttentionCall&, const AttentionTile&, int64_t head, int thread, float* states);

  // Weight rows per task: few enough that no thread is idle for long while the last tasks run, on a slow core for example.
  int64_t balanced_rows(int64_t rows) const { return ceil_div(rows, balanced_tasks_); }
  WeightKind kind(const WeightView& w) const { return kind_of(w, int8_activations_); }
  const Product& product(const WeightView& w) const { return products_[kind(w)]; }
  const Product& key_product() const { return product({nullptr, compute_dtype_}); }  // with the K pages, which have that dtype
  void quantize(std::span<WeightView* const> weights, WeightUse use);
  // Packs `num_rows` rows of n values. The returned group is valid until `buffer` is used again.
  RowGroup pack_rows(const Product& product, const float* x, int64_t num_rows, int64_t n, Scratch<char>& buffer);

  DType compute_dtype_;
  const cpu::Kernels& kernels_;
  const cpu::QuantKernels& quant_kernels_;
  const cpu::BlockKernels& block_kernels_;
  const PerKind<Product> products_;
  ThreadPool pool_;
  const int64_t balanced_tasks_;
  const QuantFormat quantization_;
  const bool int8_activations_;
  WeightStore store_;
  Selector selector_;
  std::vector<SelectionStats> stats_;  // one entry per route() call of the step
  PerKind<Scratch<char>> packed_;      // rows entering linear()
  Scratch<char> gathered_, hidden_;    // expert_ffn: rows entering gate and up, and down, by expert
  Scratch<float> expert_out_;          // expert_ffn: [pairs, H]
  Scratch<int32_t> mlp_rows_;          // mlp: the identity plan
  Scratch<float> mlp_weights_;
  Scratch<float> scaled_;               // linear: [T, N] a product that is scaled before it is added
  std::vector<Scratch<float>> tile_;    // one per thread: gate and up tiles; attention scores; biases
  std::vector<Scratch<char>> query_;    // one per thread: packed query rows
  std::vector<Scratch<char>> decoded_;  // one per thread: rows of weights in blocks
  std::vector<AttentionTile> tiles_;
  Scratch<float> spans_;              // attention: the spans' states until they are merged
  std::vector<TokenDrawer> drawers_;  // one per thread
};

}  // namespace lynx_rt
