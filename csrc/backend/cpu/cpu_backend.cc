// Construction, memory, and the ops that are a loop over rows.
#include "backend/cpu/cpu_backend.h"

#include <sys/mman.h>

#include "backend/cpu/dispatch.h"

namespace lynx_rt {

CpuBackend::CpuBackend(const BackendOptions& options)
    : compute_dtype_(options.compute_dtype),
      kernels_(cpu::kernels_for(resolve_isa(options.isa))),
      pool_(options.num_threads == 0 ? usable_cores() : options.num_threads),
      tile_(size_t(pool_.num_threads())),
      query_(size_t(pool_.num_threads())) {}

std::string CpuBackend::description() const {
  return str_cat("cpu ", isa_name(kernels_.isa), ", ", pool_.num_threads(), " threads, ", dtype_name(compute_dtype_));
}

void* CpuBackend::allocate(int64_t bytes, const char* what) {
  // Anonymous pages are zero and take no memory before they are touched: a large KV cache costs what is used of it.
  void* p =
      mmap(nullptr, size_t(bytes > 0 ? bytes : 1), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) fail(ErrorCode::kOutOfMemory, what, what, ": cannot allocate ", bytes, " bytes");
  if (bytes >= (4 << 20)) madvise(p, size_t(bytes), MADV_HUGEPAGE);
  return p;
}

void CpuBackend::release(void* p, int64_t bytes) noexcept {
  if (p) munmap(p, size_t(bytes > 0 ? bytes : 1));
}

const void* const* CpuBackend::pack_rows(const float* x, int64_t rows, int64_t n, DType weight, Scratch<char>& buffer,
                                         Scratch<const void*>& pointers) {
  const void** out = pointers.get(rows);
  if (!takes_bf16(weight) && compute_dtype_ == DType::kF32) {
    for (int64_t t = 0; t < rows; ++t) out[t] = x + t * n;
    return out;
  }
  int64_t row_bytes = round_up(packed_bytes(weight, n), 64);
  char* data = buffer.get(rows * row_bytes);
  for (int64_t t = 0; t < rows; ++t) out[t] = data + t * row_bytes;
  constexpr int64_t kRows = 16;
  pool_.parallel_for(ceil_div(rows, kRows), [&](int64_t task, int) {
    for (int64_t t = task * kRows; t < std::min(rows, (task + 1) * kRows); ++t)
      pack_row(x + t * n, n, weight, data + t * row_bytes);
  });
  return out;
}

void CpuBackend::do_embed(const WeightView& table, const int32_t* ids, int64_t num_rows, float* out) {
  for (int64_t t = 0; t < num_rows; ++t) kernels_.to_f32(table.row(ids[t]), table.dtype, table.cols, out + t * table.cols);
}

void CpuBackend::do_rmsnorm(const float* x, const WeightView& weight, float eps, int64_t num_rows, float* out) {
  constexpr int64_t kRows = 16;
  int64_t n = weight.cols;
  pool_.parallel_for(ceil_div(num_rows, kRows), [&](int64_t task, int) {
    for (int64_t t = task * kRows; t < std::min(num_rows, (task + 1) * kRows); ++t)
      kernels_.rmsnorm(x + t * n, weight.data, weight.dtype, n, eps, out + t * n);
  });
}

SelectionStats CpuBackend::do_select(const float* scores, int64_t num_rows, const RouterRule& rule, const Selection& selection,
                                     Phase phase, const uint8_t* exact, Routing& routing) {
  return selector_.run(scores, num_rows, rule, selection, phase, exact, routing);
}

void CpuBackend::do_dispatch(const Routing& routing, int64_t num_rows, const RouterRule& rule, DispatchPlan& plan) {
  dispatch_pairs(routing, num_rows, rule, plan);
}

}  // namespace lynx_rt
