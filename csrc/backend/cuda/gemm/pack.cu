// Packs weights in the order in which packed_gemm.cuh reads them, once, at load time.
//
// Work split: a warp makes one block of 16 rows x 32 columns: each lane reads 8 consecutive columns of two rows and writes one
// word of 16 bytes per step. to_float32: a value per thread. Memory traffic: each value is read once (a load per value, because rows
// are only aligned to their element, but whole sectors together) and written once. Limits: fewer than 2^34 blocks of 16 x 32.
#include "backend/cuda/gemm/packed.h"
#include "backend/cuda/runtime/launch.h"
#include "backend/cuda/runtime/ptx.cuh"
#include "base/error.h"

namespace lynx_rt::cuda {

namespace {

constexpr int kWarps = 8;

// The conversion is exact: every half-precision number is a float32 number.
__device__ float half_to_float(uint16_t v) {
  const uint32_t sign = uint32_t(v & 0x8000) << 16, exponent = v & 0x7c00, rest = uint32_t(v & 0x7fff) << 13;
  if (exponent == 0x7c00) return bits_float(sign | 0x7f800000u | rest);  // infinity, NaN
  if (exponent == 0)
    return bits_float(sign | float_bits(float(v & 0x3ff) * bits_float(0x33800000u)));  // zero, subnormal: * 2^-24
  return bits_float(sign | (rest + ((127u - 15u) << 23)));
}

template <DType kType>
__device__ float load_float(const void* values, int64_t i) {
  if constexpr (kType == DType::kF32) return static_cast<const float*>(values)[i];
  const uint16_t bits = static_cast<const uint16_t*>(values)[i];
  return kType == DType::kBF16 ? from_bf16(bits) : half_to_float(bits);
}

struct PackParams {
  const void* rows;
  int64_t num_rows, num_columns, num_blocks;  // blocks of 16 x 32
  unsigned char* to;                          // of the first block
  int parts;
};

// Loads eight columns of a row, from `column` on, as four words of two bf16; zeros outside of the matrix.
template <DType kType>
__device__ void load_columns(const PackParams& p, int64_t row, int64_t column, uint32_t (&out)[4]) {
  LYNX_UNROLL
  for (int i = 0; i < 4; ++i) {
    float value[2];
    LYNX_UNROLL
    for (int j = 0; j < 2; ++j) {
      const int64_t c = column + 2 * i + j;
      value[j] = row < p.num_rows && c < p.num_columns ? load_float<kType>(p.rows, row * p.num_columns + c) : 0.0f;
    }
    out[i] = to_bf16x2(value[0], value[1]);
  }
}

template <DType kType>
__global__ void __launch_bounds__(32 * kWarps) pack_kernel(const __grid_constant__ PackParams p) {
  grid_wait();
  grid_launch_dependents();
  const int64_t block = int64_t(blockIdx.x) * kWarps + warp_id();
  if (block >= p.num_blocks) return;
  const int64_t blocks_of_row = (p.num_columns + kBlockColumns - 1) / kBlockColumns;
  const int64_t row = block / blocks_of_row * kBlockRows + lane_id() / 4;
  const int64_t column = block % blocks_of_row * kBlockColumns + lane_id() % 4 * 8;
  uint32_t upper[4], lower[4];  // columns of rows g and g + 8
  load_columns<kType>(p, row, column, upper);
  load_columns<kType>(p, row + 8, column, lower);
  LYNX_UNROLL
  for (int step = 0; step < 2; ++step)
    *reinterpret_cast<Words4*>(p.to + (2 * block + step) * p.parts * 512 + lane_id() * 16) =
        Words4{upper[2 * step], lower[2 * step], upper[2 * step + 1], lower[2 * step + 1]};
}

template <DType kType>
__global__ void __launch_bounds__(256) to_float32_kernel(const void* values, int64_t count, float* out) {
  grid_wait();
  grid_launch_dependents();
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < count) out[i] = load_float<kType>(values, i);
}

unsigned grid_size(const char* what, int64_t items, int64_t per_block) {
  const int64_t blocks = ceil_div(items, per_block);
  if (blocks > INT32_MAX) invalid(what, "too large: ", items, " items");
  return unsigned(blocks);
}

}  // namespace

void pack(const void* rows, DType dtype, int64_t row_begin, int64_t num_rows, int64_t num_columns, const PackTarget& target,
          Stream stream) {
  if (row_begin < 0 || row_begin % kBlockRows) invalid("pack", "row_begin: expected a multiple of 16, got ", row_begin);
  if (num_rows < 0 || num_columns < 0) invalid("pack", "expected no negative sizes, got [", num_rows, ", ", num_columns, "]");
  if (target.parts < 1 || target.part < 0 || target.part >= target.parts)
    invalid("pack", "part: expected 0..", target.parts - 1, ", got ", target.part);
  const int64_t blocks_of_row = ceil_div(num_columns, kBlockColumns);
  PackParams p{rows, num_rows, num_columns, ceil_div(num_rows, kBlockRows) * blocks_of_row, nullptr, target.parts};
  if (p.num_blocks == 0) return;
  p.to =
      static_cast<unsigned char*>(target.data) + row_begin / kBlockRows * blocks_of_row * 1024 * target.parts + target.part * 512;
  auto* kernel = dtype == DType::kF32    ? pack_kernel<DType::kF32>
                 : dtype == DType::kBF16 ? pack_kernel<DType::kBF16>
                                         : pack_kernel<DType::kF16>;
  launch(kernel, grid_size("pack", p.num_blocks, kWarps), 32 * kWarps, 0, stream, p);
}

void to_float32(const void* values, DType dtype, int64_t count, float* out, Stream stream) {
  if (count < 0) invalid("to_float32", "count: expected at least 0, got ", count);
  if (count == 0) return;
  auto* kernel = dtype == DType::kF32    ? to_float32_kernel<DType::kF32>
                 : dtype == DType::kBF16 ? to_float32_kernel<DType::kBF16>
                                         : to_float32_kernel<DType::kF16>;
  launch(kernel, grid_size("to_float32", count, 256), 256, 0, stream, values, count, out);
}

}  // namespace lynx_rt::cuda
