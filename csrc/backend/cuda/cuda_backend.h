// The CUDA backend queues kernels on one stream. Matrix weights are packed bfloat16 (packed.h), products take bfloat16 rows.
//
// The contract of the ops (backend.h) saves launches and memory traffic:
//   rounded rows   norms and attention() write the bfloat16 form of their Activations too; rows that come without it are rounded by
//                  a launch of their own
//   pending sums   expert_ffn() leaves the weighted sum over a row's experts to the norm that follows
//   graphs         a decode-only step of at most kMaxGraphRows rows is padded to a power of two, recorded at the second use of
//                  its sizes, and replayed from then on
// This backend has not run on a GPU yet; tests/simt runs it on the CPU.
#pragma once
#include <map>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "backend/cuda/attention/attention.h"
#include "backend/cuda/gemm/packed.h"
#include "backend/cuda/gemm/weight_loader.h"
#include "backend/cuda/route/route.h"
#include "backend/cuda/runtime/runtime.h"

namespace lynx_rt {

class CudaBackend final : public Backend {
 public:
  static constexpr int64_t kMaxGraphRows = 256;
  static constexpr int kMaxPartials = 8192;                        // most splits of all rows of a step: attention.h
  static constexpr int64_t kMaxPartialBytes = int64_t{256} << 20;  // most memory for their results

  // options.device is "cuda" or "cuda:N". Throws kUnsupported where there is no such device (saying why), where the build has no code
  // for it, and for a compute dtype other than bfloat16.
  explicit CudaBackend(const BackendOptions& options);
  ~CudaBackend() override;

  std::string description() const override;
  DType compute_dtype() const override { return DType::kBF16; }
  void* allocate(int64_t bytes, const char* what) override;
  void release(void* p, int64_t bytes) noexcept override;
  MemoryBudget memory_budget() const override;
  bool host_memory() const override { return false; }
  int64_t rounded_row_bytes(int64_t num_columns) const override;
  WeightView place(const WeightView& weight, WeightUse use) override;
  void place_experts(std::span<ExpertWeights> experts) override;
  bool takes_blocks(WeightUse, const BlockRows&) const override;
  void place_heads(std::span<WeightView> heads) override;
  void reserve(const StepLimits& limits) override;
  int64_t max_selection_rows() const override { return cuda::kMaxRouteRows; }

 private:
  void do_embed(const WeightView&, const int32_t*, int64_t, float*, float scale) override;
  void do_rmsnorm(const float*, const WeightView&, float, int64_t, const RowsOut&, const ExpertSum&) override;
  void do_add_rmsnorm(const float*, const WeightView&, float, int64_t, bool accumulate, float*, const WeightView& scale,
                      const ExpertSum&) override;
  void do_layernorm(const float*, const WeightView& weight, const WeightView& bias, float, int64_t, const RowsOut&,
                    const ExpertSum&) override;
  void do_combine(float*, int64_t num_rows, const ExpertSum&) override;
  void do_linear(const RowsIn&, int64_t num_rows, std::span<const LinearPart>, bool, float*, int64_t, float scale) override;
  void do_head_linear(const RowsIn&, int64_t x_stride, int64_t x_head, int64_t num_rows, HeadWeights, float*, int64_t out_stride,
                      int64_t out_head) override;
  void do_qkv_post(const QkvPostArgs&, const BatchView&, const KvCacheView&) override;
  void do_mla_post(const MlaPostArgs&, const BatchView&, const KvCacheView&) override;
  void do_attention(const AttentionArgs&, const BatchView&, const KvCacheView&, const RowsOut&) override;
  void do_gated_delta(const GatedDeltaArgs&, const BatchView&, const StateView&, const RowsOut&) override;
  void do_mamba2(const Mamba2Args&, const BatchView&, const StateView&, const RowsOut&) override;
  void do_short_conv(const ShortConvArgs&, const BatchView&, const StateView&, const RowsOut&) override;
  void do_router(const float*, const WeightView& weight, const WeightView& bias, int64_t, float*, float scale) override;
  void do_route(const float*, const BatchView&, const RouterRule&, const Selection&, Routing&, DispatchPlan&,
                const uint8_t* cost) override;
  const void* do_expert_table(std::span<const ExpertWeights>) override;
  ExpertSum do_expert_ffn(const RowsIn&, int64_t num_rows, const ExpertTable&, const RouterRule&, const FfnRule&, const Routing&,
                          const DispatchPlan&, float*, bool accumulate) override;
  void do_mlp(const RowsIn&, int64_t num_rows, const ExpertWeights&, const WeightView& row_gate, float*, Activation,
              bool accumulate, float scale, int64_t out_stride) override;
  void do_soft_cap(float*, int64_t count, float cap) override;
  void do_gather_rows(const float*, std::span<const int32_t>, int64_t, float*) override;
  void do_set_rows(const float*, int64_t from_stride, int64_t num_rows, int64_t num_columns, bool accumulate, float*) override;
  void do_sample(const float*, std::span<const DrawParams>, std::span<const int32_t>, int64_t, int32_t*) override;
  BatchView do_begin_step(const BatchView& batch) override;
  void do_run(const StepKey&, const BatchView&, const std::function<void(const BatchView&)>& ops) override;
  void do_end_step(std::span<SelectionStats>) override;
  void do_write(void* to, const void* from, int64_t bytes) override;
  void do_read(void* to, const void* from, int64_t bytes) override;
  void do_copy(void* to, const void* from, int64_t bytes) override;

  // allocate_device() for memory whose size depends on the size of steps: the error says which arguments would need less.
  static cuda::DeviceMemory allocate_step_memory(int64_t bytes, const char* what);
  char* allocate_weights(int64_t bytes);  // memory that stays as long as the backend
  void pack_weight(WeightView& view, const cuda::PackTarget& target);
  // Returns the bfloat16 form of x [num_rows, num_columns]. Rows that come without it are rounded into scratch memory, whose contents
  // last until the next op.
  const uint16_t* rounded(const RowsIn& x, int64_t num_rows, int64_t num_columns);
  void wait();  // waits for the stream, after which the staging memory is free again
  // Returns `bytes` of pinned memory, which no one else gets until the next wait().
  void* stage(int64_t bytes);
  template <class T>
  T* stage_copy(std::span<const T> values);

  // The arrays of a step, in one block of memory that is copied at once.
  struct StepArrays {
    int64_t rows = 0, sequences = 0, table_stride = 0, tiles = 0;  // sizes for the kernels, padding included
    bool split = false;                                            // some row's keys are split over blocks
    bool graph = false;                                            // may be recorded and replayed as a graph
    const int32_t* num_rows = nullptr;                             // this and the arrays below are on the device
    const int32_t* positions = nullptr;
    const int64_t* slots = nullptr;
    const int32_t* block_tables = nullptr;
    const uint8_t* exact = nullptr;
    const cuda::AttentionTile* attention_tiles = nullptr;
    const int32_t* first_partial = nullptr;
  };
  struct RecordedStep {
    int uses = 0;
    cuda::Graph graph;
    int route_calls = 0;
    std::array<int64_t, kNumOps> calls{},
        bytes{};  // added to the profile by each replay; attention's bytes are per attended token
  };

  int device_ = 0;
  cuda::DeviceProperties properties_;
  cuda::OwnedStream owned_stream_;
  cuda::Stream stream_;
  StepLimits limits_;
  int max_partials_ = 0;

  // Weights
  std::unique_ptr<cuda::WeightLoader> loader_;  // until reserve()
  std::vector<cuda::DeviceMemory> weights_;
  struct ExpertBits {
    int gate_up, down;  // FfnArgs::bits
  };
  std::map<const void*, ExpertBits> expert_bits_;  // by ExpertTable::entries()
  std::map<const void*, WeightView> placed_;       // matrices by the address of their host data: a tied embedding is placed once

  // Step
  cuda::PinnedMemory staging_, step_host_;
  cuda::DeviceMemory step_device_;
  int64_t staged_ = 0, step_bytes_ = 0;
  StepArrays step_;
  cuda::AttentionPlan plan_;
  std::map<std::string, RecordedStep> recorded_;

  // Scratch, sized by reserve()
  cuda::DeviceMemory rounded_, hidden_, partial_, pair_weights_, attention_partial_, row_scales_, tiles_, counts_, route_scratch_,
      stats_, token_masks_, params_, tokens_, rows_;
  cuda::PinnedMemory host_stats_, host_tokens_;
  int route_calls_ = 0;
  bool in_step_ = false;
  struct PendingTokens {
    int32_t* to;
    int64_t first, count;
  };
  std::vector<PendingTokens> pending_tokens_;
};

}  // namespace lynx_rt
