// The CPU backend: one .cc per op, inner loops in kernels/, one thread pool.
#pragma once
#include <algorithm>
#include <vector>

#include "backend/backend.h"
#include "backend/cpu/kernels/kernels.h"
#include "backend/cpu/scratch.h"
#include "backend/cpu/select.h"
#include "base/thread_pool.h"

namespace lynx_rt {

// Weight rows that a task streams: about 64 KB, in whole register tiles, so that they stay in the second-level cache while the
// task's rows of x pass over them.
inline int64_t cached_rows(int64_t row_bytes) {
  return std::max<int64_t>(4, (64 << 10) / std::max<int64_t>(1, row_bytes) / 4 * 4);
}

class CpuBackend final : public Backend {
 public:
  explicit CpuBackend(const BackendOptions& options);

  std::string description() const override;
  DType compute_dtype() const override { return compute_dtype_; }
  void* allocate(int64_t bytes, const char* what) override;
  void release(void* p, int64_t bytes) noexcept override;
  MemoryBudget memory_budget() const override;

 private:
  void do_embed(const WeightView&, const int32_t*, int64_t, float*) override;
  void do_rmsnorm(const float*, const WeightView&, float, int64_t, float*) override;
  void do_linear(const float*, int64_t, std::span<const LinearPart>, bool, float*, int64_t) override;
  void do_qkv_post(const QkvPostArgs&, const BatchView&, const KvCacheView&) override;
  void do_attention(const float*, int64_t, int64_t, float, const BatchView&, const KvCacheView&, float*) override;
  void do_router(const float*, const WeightView&, int64_t, float*) override;
  void do_route(const float*, const BatchView&, const RouterRule&, const Selection&, Routing&, DispatchPlan&) override;
  void do_expert_ffn(const float*, int64_t, std::span<const ExpertWeights>, const RouterRule&, const Routing&,
                     const DispatchPlan&, float*) override;
  void do_mlp(const float*, int64_t, const ExpertWeights&, float*) override;
  void do_gather_rows(const float*, std::span<const int32_t>, int64_t, float*) override;
  void do_sample(const float*, std::span<const DrawParams>, int64_t, int32_t*) override;
  BatchView do_begin_step(const BatchView& batch) override;
  void do_end_step(std::span<SelectionStats>) override;

  // How rows enter a product with weights of a dtype: as bf16 where the bf16 kernel applies, else as float32 rounded to the
  // compute dtype.
  bool takes_bf16(DType weight) const { return kernels_.gemm_bf16 && compute_dtype_ == DType::kBF16 && weight == DType::kBF16; }
  cpu::GemmFn gemm(DType weight) const { return takes_bf16(weight) ? kernels_.gemm_bf16 : kernels_.gemm_f32[int(weight)]; }
  int64_t packed_bytes(DType weight, int64_t count) const { return count * (takes_bf16(weight) ? 2 : 4); }
  // Writes one row of n values in the form that gemm(weight) takes.
  void pack_row(const float* x, int64_t n, DType weight, void* out) const {
    if (takes_bf16(weight))
      kernels_.from_f32(x, n, DType::kBF16, out);
    else
      kernels_.round_to(x, n, compute_dtype_, static_cast<float*>(out));
  }
  // Packs [rows, n] into `buffer` and returns one pointer per row, valid until the next call with the same buffers.
  const void* const* pack_rows(const float* x, int64_t rows, int64_t n, DType weight, Scratch<char>& buffer,
                               Scratch<const void*>& pointers);

  DType compute_dtype_;
  const cpu::Kernels& kernels_;
  ThreadPool pool_;
  Selector selector_;
  std::vector<SelectionStats> stats_;  // of the step's route() calls
  Scratch<char> packed_[3];            // rows entering linear(), one form per weight dtype
  Scratch<const void*> packed_rows_[3];
  Scratch<char> hidden_;  // expert_ffn: activated rows, packed for the down projection
  Scratch<const void*> gathered_rows_, hidden_rows_;
  Scratch<float> expert_out_;  // expert_ffn: [pairs, H]
  Scratch<int32_t> mlp_rows_;  // mlp: the identity plan
  Scratch<float> mlp_weights_;
  std::vector<Scratch<float>> tile_;  // one per thread: gate and up tiles; attention scores
  std::vector<Scratch<char>> query_;  // one per thread: packed query rows
  std::vector<TokenDrawer> drawers_;  // one per thread
};

}  // namespace lynx_rt
