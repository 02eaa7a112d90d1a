#include "backend/cpu/product.h"

#include <algorithm>

#include "base/types.h"

namespace lynx_rt {

Product::Product(const cpu::Kernels& kernels, DType compute, DType weight, const cpu::BlockKernels* blocks)
    : kernels_(&kernels),
      blocks_(blocks),
      compute_(compute),
      weight_(weight),
      form_(Form::kF32),
      gemm_(kernels.gemm_f32[int(weight)]) {
  if (compute != DType::kBF16 || weight != DType::kBF16) return;
  if (kernels.gemm_bf16_tiles) {
    form_ = Form::kBF16Tiles;
    pack_ = kernels.pack_bf16_tiles;
    gemm_ = kernels.gemm_bf16_tiles;
    pieces_ = kernels.gemm_bf16_pieces;
  } else if (kernels.gemm_bf16) {
    form_ = Form::kBF16;
    gemm_ = kernels.gemm_bf16;
  }
}

Product::Product(const cpu::QuantKernels& kernels, QuantFormat weight)
    : pack_(kernels.pack), form_(Form::kQuantized), gemm_(weight == QuantFormat::kInt8 ? kernels.gemm_int8 : kernels.gemm_int4) {}

Product::Product(const cpu::BlockKernels& kernels) : pack_(kernels.pack), form_(Form::kBlocks), block_gemm_(kernels.gemm) {}

int64_t Product::row_bytes(int64_t k) const {
  if (form_ == Form::kQuantized) return cpu::Quant::x_bytes(k);
  if (form_ == Form::kBlocks) return cpu::Blocks::x_bytes(k);
  if (form_ == Form::kF32) return round_up(k, kernels_->block_columns) * 4;
  return round_up(k * 2, 64);
}

void Product::pack(const float* const* rows, int64_t m, int64_t begin, int64_t n, RowGroup out) const {
  if (pack_) return pack_(rows, m, begin, n, out.data, out.row_bytes);
  for (int64_t j = 0; j < m; ++j) {
    char* row = out.from(j).data;
    if (form_ == Form::kBF16) {
      kernels_->from_f32(rows[j], n, DType::kBF16, row + begin * 2);
      continue;
    }
    float* to = reinterpret_cast<float*>(row) + begin;
    const int64_t padded = round_up(n, kernels_->block_columns);
    kernels_->round_to(rows[j], n, compute_, to);
    std::fill(to + n, to + padded, 0.0f);
    if (weight_ == DType::kBF16) kernels_->split_pairs(to, padded);
  }
}

void Product::decode_row(const WeightView& w, int64_t row, float* out) const {
  blocks_->values(w.blocks, row, w.cols, out);
  for (const DType dtype : {w.blocks.product_dtype, weight_})
    if (dtype != DType::kF32) kernels_->round_to(out, w.cols, dtype, out);
}

// Weights are decoded a few rows at a time, which the product then reads from the cache. What it gives does not depend on their number.
void Product::run_decoded(const WeightView& w, int64_t first, int64_t n, RowGroup x, int64_t m, float* out, int64_t out_stride,
                          bool accumulate, const void* next, Scratch<char>& scratch) const {
  constexpr int64_t kBytes = 128 << 10;
  // The rows of a product are not a power of two apart, since they would meet in few lines of the cache.
  const int64_t stride = round_up(w.cols * dtype_size(weight_), 64) + 64;
  const int64_t step = std::max(tile_rows(), kBytes / stride / tile_rows() * tile_rows());
  char* decoded = scratch.get(std::min(n, step) * stride);
  for (int64_t i = 0; i < n; i += step) {
    const int64_t count = std::min(step, n - i);
    blocks_->decode(from_row(w.blocks, first + i), count, w.cols, weight_, decoded, stride);
    const void* then = i + count < n ? w.row(first + i + count) : next;
    gemm_(decoded, stride, count, x.data, x.row_bytes, m, w.cols, out + i, out_stride, accumulate, then);
  }
}

int64_t Product::rows_per_task(int64_t row_bytes, int64_t most, int64_t num_rows) const {
  // The first rows of a task are not prefetched, so tasks are large; less so where passes of 16 rows of x read a task's weights again.
  // Many rows of x do not stay in the cache: each task reads them anew, so that tasks are large again.
  constexpr int64_t kManyRows = 256;
  const int64_t tile = tile_rows(), bytes = form_ == Form::kBF16 && num_rows < kManyRows ? 64 << 10 : 256 << 10;
  const int64_t by_bytes = std::max(tile, bytes / std::max<int64_t>(1, row_bytes) / tile * tile);
  return std::min(by_bytes, std::max(tile, round_up(most, tile)));
}

}  // namespace lynx_rt
