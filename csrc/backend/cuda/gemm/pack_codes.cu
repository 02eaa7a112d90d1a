// Packs quantised weights in the order in which packed_weights.cuh reads them, once, at load time, without loss.
//
// Work split: a warp makes the codes of one block of 16 rows x 32 columns: each lane reads 8 consecutive columns of two rows. A thread
// writes a scale and a zero point. Memory traffic: each byte is read and written once. Limits: fewer than 2^34 blocks of 16 x 32, and
// 2^39 scales.
#include "backend/cuda/gemm/packed.h"
#include "backend/cuda/runtime/launch.h"
#include "backend/cuda/runtime/ptx.cuh"
#include "base/error.h"

namespace lynx_rt::cuda {

namespace {

constexpr int kWarps = 8;

struct CodeParams {
  const unsigned char* rows;
  int64_t row_bytes, num_rows, num_blocks;  // blocks of 16 x 32
  int blocks_of_row, block_bytes;           // bytes from one block of the target to the next
  uint32_t flipped;                         // bits of two codes that change
  unsigned char* to;                        // of the first block
};

template <int kBits>
__global__ void __launch_bounds__(32 * kWarps) pack_codes_kernel(const __grid_constant__ CodeParams p) {
  grid_wait();
  grid_launch_dependents();
  const int64_t block = int64_t(blockIdx.x) * kWarps + warp_id();
  if (block >= p.num_blocks) return;
  constexpr int kWords = kBits / 4;  // of 8 codes
  uint32_t in[2][kWords] = {};       // of rows g and g + 8
  LYNX_UNROLL
  for (int half = 0; half < 2; ++half) {
    const int64_t row = block / p.blocks_of_row * kBlockRows + lane_id() / 4 + 8 * half;
    if (row >= p.num_rows) continue;
    const unsigned char* from = p.rows + row * p.row_bytes + block % p.blocks_of_row * (4 * kBits) + lane_id() % 4 * kBits;
    LYNX_UNROLL
    for (int i = 0; i < kWords; ++i) in[half][i] = reinterpret_cast<const uint32_t*>(from)[i];
  }
  uint32_t out[2 * kWords] = {};
  LYNX_UNROLL
  for (int step = 0; step < 2; ++step) {
    LYNX_UNROLL
    for (int r = 0; r < 4; ++r) {
      const int column = 4 * step + r / 2 * 2;  // of the lane's eight
      const uint32_t* words = in[r % 2];
      if constexpr (kBits == 4) {
        const uint32_t two = words[0] >> (4 * column);
        out[step] |= (two & 15) << (4 * r) | (two >> 4 & 15) << (16 + 4 * r);
      } else {
        const uint32_t two = words[column / 4] >> (8 * (column % 4)) & 0xffff;
        out[2 * step + r / 2] |= (two ^ p.flipped) << (16 * (r % 2));
      }
    }
  }
  unsigned char* to = p.to + block * p.block_bytes + lane_id() * (2 * kBits);
  if constexpr (kBits == 4) {
    *reinterpret_cast<Words2*>(to) = {out[0], out[1]};
  } else {
    *reinterpret_cast<Words4*>(to) = {out[0], out[1], out[2], out[3]};
  }
}

struct ScaleParams {
  const void* rows;
  int64_t row_bytes, num_rows, count;  // values to write, those of absent rows included
  int groups, part, parts;
  void* to;  // of the first block of rows
};

template <class T>
__global__ void __launch_bounds__(256) pack_scales_kernel(const __grid_constant__ ScaleParams p) {
  grid_wait();
  grid_launch_dependents();
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= p.count) return;
  const int64_t row = i / p.groups;
  const int group = int(i % p.groups), r = int(row % kBlockRows);
  const unsigned char* from = static_cast<const unsigned char*>(p.rows) + row * p.row_bytes;
  T* to = static_cast<T*>(p.to) + ((row / kBlockRows * p.groups + group) * p.parts + p.part) * kBlockRows;
  to[r % 8 * 2 + r / 8] = row < p.num_rows ? reinterpret_cast<const T*>(from)[group] : T{0};
}

unsigned grid_size(int64_t items, int64_t per_block) {
  const int64_t blocks = ceil_div(items, per_block);
  if (blocks > INT32_MAX) invalid("pack_codes", "too large: ", items, " items");
  return unsigned(blocks);
}

}  // namespace

PackedForm packed_form(const BlockRows& rows) {
  if (!multiplies(rows))
    fail(ErrorCode::kUnsupported, "weight", "weight: no product takes ", block_code_name(rows.code), " with such scales");
  if (rows.group < kBlockColumns || rows.group % kBlockColumns || rows.group / kBlockColumns > INT32_MAX)
    invalid("weight", "group: expected a multiple of 32, got ", rows.group);
  const int8_t bits = rows.code == BlockCode::kGroupedInt8 || rows.code == BlockCode::kGroupedFp8 ? 8 : 4;
  return {bits, rows.code, rows.scale_type, rows.zeros != nullptr, int32_t(rows.group / kBlockColumns)};
}

void pack_codes(const BlockRows& rows, int64_t row_begin, int64_t num_rows, int64_t matrix_rows, int64_t num_columns,
                const PackTarget& target, Stream stream) {
  const PackedForm form = packed_form(rows);
  if (row_begin < 0 || row_begin % kBlockRows) invalid("pack_codes", "row_begin: expected a multiple of 16, got ", row_begin);
  if (num_rows < 0 || row_begin + num_rows > matrix_rows)
    invalid("pack_codes", "rows: expected rows of ", matrix_rows, ", got ", row_begin, " + ", num_rows);
  const int64_t columns = block_size(rows.code).columns;
  if (num_columns < 1 || num_columns % columns)
    invalid("pack_codes", "columns: expected a multiple of ", columns, ", got ", num_columns);
  if (target.parts < 1 || target.part < 0 || target.part >= target.parts)
    invalid("pack_codes", "part: expected 0..", target.parts - 1, ", got ", target.part);
  if (num_rows == 0) return;
  const int64_t blocks_of_row = ceil_div(num_columns, kBlockColumns), groups = ceil_div(blocks_of_row, form.group);
  const int64_t first = row_begin / kBlockRows, row_blocks = ceil_div(num_rows, kBlockRows);
  const int64_t matrix_blocks = ceil_div(matrix_rows, kBlockRows);
  const int code_bytes = 64 * form.bits;
  unsigned char* to = static_cast<unsigned char*>(target.data);
  const CodeParams codes{static_cast<const unsigned char*>(rows.data),
                         rows.row_bytes,
                         num_rows,
                         row_blocks * blocks_of_row,
                         int(blocks_of_row),
                         target.parts * code_bytes,
                         form.code == BlockCode::kGroupedInt8 ? 0x8080u : 0,
                         to + (first * blocks_of_row * target.parts + target.part) * code_bytes};
  launch(form.bits == 4 ? pack_codes_kernel<4> : pack_codes_kernel<8>, grid_size(codes.num_blocks, kWarps), 32 * kWarps, 0,
         stream, codes);

  to += matrix_blocks * blocks_of_row * target.parts * code_bytes;
  const int64_t scale_bytes = scale_size(form.scale_type), row_block_scales = groups * target.parts * kBlockRows;
  ScaleParams scales{rows.scales, rows.scale_row_bytes, num_rows,     row_blocks * kBlockRows * groups,
                     int(groups), target.part,          target.parts, to + first * row_block_scales * scale_bytes};
  auto* kernel = scale_bytes == 4   ? pack_scales_kernel<uint32_t>
                 : scale_bytes == 2 ? pack_scales_kernel<uint16_t>
                                    : pack_scales_kernel<uint8_t>;
  launch(kernel, grid_size(scales.count, 256), 256, 0, stream, scales);
  if (!form.zeros) return;
  to += matrix_blocks * row_block_scales * scale_bytes;
  scales.rows = rows.zeros;
  scales.row_bytes = rows.zero_row_bytes;
  scales.to = to + first * row_block_scales;
  launch(pack_scales_kernel<uint8_t>, grid_size(scales.count, 256), 256, 0, stream, scales);
}

}  // namespace lynx_rt::cuda
