// A matrix product with weights of one dtype, and the form in which rows enter it.
#pragma once
#include <array>
#include <cstdint>

#include "backend/cpu/kernels/blocks.h"
#include "backend/cpu/kernels/kernels.h"
#include "backend/cpu/kernels/quant.h"
#include "backend/cpu/scratch.h"
#include "base/tensor.h"

namespace lynx_rt {

// The formats of weights, each with a product of its own.
enum class WeightKind : uint8_t { kF32, kBF16, kF16, kInt8, kInt4, kBlocks };

// Weights in blocks that are decoded before they are multiplied are of the kind of their dtype. int8_activations: of
// BackendOptions.
inline WeightKind kind_of(const WeightView& w, bool int8_activations) {
  if (w.format == QuantFormat::kInt8) return WeightKind::kInt8;
  if (w.format == QuantFormat::kInt4) return WeightKind::kInt4;
  if (w.format == QuantFormat::kBlocks && int8_activations && w.blocks.code != BlockCode::kGroupedFp8) return WeightKind::kBlocks;
  return w.dtype == DType::kF32 ? WeightKind::kF32 : w.dtype == DType::kBF16 ? WeightKind::kBF16 : WeightKind::kF16;
}

// One T for each kind of weight.
template <class T>
struct PerKind {
  std::array<T, 6> values;
  T& operator[](WeightKind kind) { return values[size_t(kind)]; }
  const T& operator[](WeightKind kind) const { return values[size_t(kind)]; }
};

// The packed rows of one product, in one piece of memory with `row_bytes` for each row. The layout of 16 rows depends on the
// product, so a part of a group must begin at a multiple of 16 rows.
struct RowGroup {
  static constexpr int64_t kRows = 16;

  char* data = nullptr;
  int64_t row_bytes = 0;

  RowGroup from(int64_t row) const { return {data + row * row_bytes, row_bytes}; }
};

class Product {
 public:
  // A product with plain weights, or with weights in blocks, which are decoded to them by `blocks`. Rows enter as bf16 where the kernels
  // have that form, else as float32 rounded to the compute dtype.
  Product(const cpu::Kernels& kernels, DType compute, DType weight, const cpu::BlockKernels* blocks = nullptr);
  // A product with quantised weights, into which rows enter quantised as well (kernels/quant.h).
  Product(const cpu::QuantKernels& kernels, QuantFormat weight);
  // A product with weights in blocks of any code, into which rows enter quantised (kernels/blocks.h).
  explicit Product(const cpu::BlockKernels& kernels);

  int64_t row_bytes(int64_t k) const;  // of a packed row
  // Packs columns [begin, begin + n) of m rows into a group; rows[j] points at their first one. `begin` is a multiple of
  // pack_step().
  int64_t pack_step() const { return form_ == Form::kQuantized || form_ == Form::kBlocks ? cpu::Quant::kGroup : 32; }
  void pack(const float* const* rows, int64_t m, int64_t begin, int64_t n, RowGroup out) const;
  // out[j * out_stride + i] (+)= dot(w[first + i], x[j]) for i < n, j < m. next: what the thread will probably read then, or null.
  // scratch: the thread's, for weights that are decoded; null where there are none.
  void run(const WeightView& w, int64_t first, int64_t n, RowGroup x, int64_t m, float* out, int64_t out_stride, bool accumulate,
           const void* next, Scratch<char>* scratch = nullptr) const {
    if (form_ == Form::kBlocks)
      return block_gemm_(from_row(w.blocks, first), n, x.data, x.row_bytes, m, w.cols, out, out_stride, accumulate);
    if (w.format == QuantFormat::kBlocks) return run_decoded(w, first, n, x, m, out, out_stride, accumulate, next, *scratch);
    gemm_(w.row(first), w.row_bytes(), n, x.data, x.row_bytes, m, w.cols, out, out_stride, accumulate, next);
  }
  // Does the same as run() without adding, for weights [.., k] in pieces of up to 16 rows anywhere in memory. Requires takes_pieces().
  bool takes_pieces() const { return pieces_ != nullptr; }
  void run_pieces(const void* const* w, const int32_t* n, int64_t pieces, int64_t k, RowGroup x, int64_t m, float* out,
                  int64_t out_stride) const {
    pieces_(w, n, pieces, 2 * k, x.data, x.row_bytes, m, k, out, out_stride);
  }
  // The parts of a weight that run() multiplies begin at multiples of this.
  int64_t tile_rows() const { return pack_ ? 16 : 4; }
  // Weight rows of `row_bytes` for one task: whole register tiles, few enough that they stay in the second-level cache while the
  // task multiplies them with all rows of x, of which there are num_rows. At most `most`, rounded up to a whole tile.
  int64_t rows_per_task(int64_t row_bytes, int64_t most, int64_t num_rows) const;

  // Decodes a row of weights in blocks to float32, rounded to the weights' dtype.
  void decode_row(const WeightView& w, int64_t row, float* out) const;

 private:
  enum class Form { kF32, kBF16, kBF16Tiles, kQuantized, kBlocks };

  void run_decoded(const WeightView& w, int64_t first, int64_t n, RowGroup x, int64_t m, float* out, int64_t out_stride,
                   bool accumulate, const void* next, Scratch<char>& scratch) const;

  const cpu::Kernels* kernels_ = nullptr;
  const cpu::BlockKernels* blocks_ = nullptr;
  cpu::PackTilesFn pack_ = nullptr;  // for the forms in which rows are not packed one by one
  DType compute_ = DType::kF32, weight_ = DType::kF32;
  Form form_;
  cpu::GemmFn gemm_ = nullptr;
  cpu::BlockGemmFn block_gemm_ = nullptr;
  cpu::GemmPiecesFn pieces_ = nullptr;
};

}  // namespace lynx_rt
