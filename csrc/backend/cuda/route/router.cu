// router(): scores[t, e] = scale * dot(x[t], weight[e]) + bias[e] in float32.
//
// Work split. A block computes a tile of rows and experts. The columns are split in quads among its lanes: lane l of warp w
// has quads 32 w + l, then every 128th. A lane sums its quads in order, lanes are summed by a butterfly, warps in order. So the order
// depends on H alone, and a score's bits depend on neither the tile nor the other rows. With few rows tiles are small, so that the
// weights are spread over more blocks.
// Memory traffic: a tile reads its rows and weights once: from device memory 4 T H + 2 E H (float32: 4 E H) bytes, from L2
// 4 T H (E / experts of a tile) and 2 E H (T / rows of a tile). Writes 4 T E.
// Limits: T <= 65535 * 8 rows. Tensor cores are not used: x is not rounded.
#include <algorithm>
#include <cmath>

#include "backend/cuda/route/router.h"
#include "backend/cuda/runtime/launch.h"
#include "backend/cuda/runtime/ptx.cuh"
#include "backend/cuda/runtime/quads.cuh"

namespace lynx_rt::cuda {

namespace {

constexpr int kWarps = 4;
constexpr int kFewRows = 64;

struct RouterParams {
  const float* x;
  const void* weight;
  const float* bias;
  float* scores;
  float scale;
  int num_rows, num_columns, num_experts;
};

// kAligned: rows of x and of the weight start at a multiple of four elements and have no short quad. It is a template parameter so
// that no branch is between the loads: a thread issues all loads of a step before it waits for the first.
template <bool kAligned>
__device__ __forceinline__ Quad load_values(const float* p, int count) {
  return load_quad(p, kAligned ? 4 : count, kAligned);
}
template <bool kAligned>
__device__ __forceinline__ Quad load_values(const uint16_t* p, int count) {
  if (kAligned) {
    const Words2 words = *reinterpret_cast<const Words2*>(p);
    return {from_bf16(uint16_t(words.x)), from_bf16(uint16_t(words.x >> 16)), from_bf16(uint16_t(words.y)),
            from_bf16(uint16_t(words.y >> 16))};
  }
  Quad q = {};
  LYNX_UNROLL
  for (int i = 0; i < 4; ++i)
    if (i < count) q.v[i] = from_bf16(p[i]);
  return q;
}

// Sums each value over the lanes. Each step halves the values that a lane has: in the end lane l has those from l * kValues / 32 on
// or, where there are fewer values than lanes, value l * kValues / 32. Every sum is the same tree.
template <int kValues>
__device__ __forceinline__ void sum_lanes(float (&v)[kValues]) {
  int left = kValues;
  LYNX_UNROLL
  for (int bit = 16; bit > 0; bit /= 2) {
    if (left == 1) {
      v[0] += shuffle_xor(kFullWarp, v[0], bit);
      continue;
    }
    left /= 2;
    const bool upper = lane_id() & bit;
    LYNX_UNROLL
    for (int i = 0; i < kValues / 2; ++i) {
      if (i >= left) continue;
      const float give = upper ? v[i] : v[i + left];
      v[i] = (upper ? v[i + left] : v[i]) + shuffle_xor(kFullWarp, give, bit);
    }
  }
}

template <class Weight, int kRows, int kExperts, bool kAligned>
__global__ void __launch_bounds__(kWarps * 32) router_kernel(const __grid_constant__ RouterParams p) {
  constexpr int kValues = kRows * kExperts, kOfLane = kValues > 32 ? kValues / 32 : 1, kSharing = kValues < 32 ? 32 / kValues : 1;
  grid_wait();
  grid_launch_dependents();
  const int first_row = int(blockIdx.y) * kRows, first_expert = int(blockIdx.x) * kExperts;
  // Rows and experts after the last one repeat the last one, and are not written.
  const float* x[kRows];
  LYNX_UNROLL
  for (int r = 0; r < kRows; ++r) {
    const int t = first_row + r < p.num_rows ? first_row + r : p.num_rows - 1;
    x[r] = p.x + int64_t(t) * p.num_columns;
  }
  const Weight* weight[kExperts];
  LYNX_UNROLL
  for (int c = 0; c < kExperts; ++c) {
    const int e = first_expert + c < p.num_experts ? first_expert + c : p.num_experts - 1;
    weight[c] = static_cast<const Weight*>(p.weight) + int64_t(e) * p.num_columns;
  }

  float sum[kValues] = {};
  for (int column = int(threadIdx.x) * 4; column < p.num_columns; column += kWarps * 32 * 4) {
    const int count = p.num_columns - column;
    Quad w[kExperts];
    LYNX_UNROLL
    for (int c = 0; c < kExperts; ++c) w[c] = load_values<kAligned>(weight[c] + column, count);
    Quad q[kRows];
    LYNX_UNROLL
    for (int r = 0; r < kRows; ++r) q[r] = load_values<kAligned>(x[r] + column, count);
    LYNX_UNROLL
    for (int r = 0; r < kRows; ++r) {
      LYNX_UNROLL
      for (int c = 0; c < kExperts; ++c) {
        LYNX_UNROLL
        for (int j = 0; j < 4; ++j) sum[r * kExperts + c] = fmaf(q[r].v[j], w[c].v[j], sum[r * kExperts + c]);
      }
    }
  }
  sum_lanes(sum);

  float* of_warp = reinterpret_cast<float*>(dynamic_shared());  // [warps, values]
  if (lane_id() % kSharing == 0) {
    LYNX_UNROLL
    for (int i = 0; i < kOfLane; ++i) of_warp[warp_id() * kValues + lane_id() / kSharing * kOfLane + i] = sum[i];
  }
  sync_block();  // of_warp
  for (int i = int(threadIdx.x); i < kValues; i += kWarps * 32) {
    float total = 0;
    for (int warp = 0; warp < kWarps; ++warp) total += of_warp[warp * kValues + i];
    const int t = first_row + i / kExperts, e = first_expert + i % kExperts;
    if (t >= p.num_rows || e >= p.num_experts) continue;
    total *= p.scale;
    p.scores[int64_t(t) * p.num_experts + e] = p.bias ? total + p.bias[e] : total;
  }
}

template <class Weight, int kRows, int kExperts, bool kAligned>
void launch_tiles(const RouterParams& params, Stream stream) {
  const Dim3 grid(unsigned(ceil_div(params.num_experts, kExperts)), unsigned(ceil_div(params.num_rows, kRows)));
  launch(router_kernel<Weight, kRows, kExperts, kAligned>, grid, kWarps * 32, size_t(kWarps * kRows * kExperts * 4), stream,
         params);
}

template <class Weight>
void launch_router(const RouterParams& params, Stream stream) {
  const auto at = [](const void* p) { return reinterpret_cast<uintptr_t>(p); };
  const bool aligned = params.num_columns % 4 == 0 && at(params.x) % 16 == 0 && at(params.weight) % (4 * sizeof(Weight)) == 0;
  if (!aligned) {  // no known model needs this kernel, which is correct but not fast
    launch_tiles<Weight, 4, 2, false>(params, stream);
  } else if (params.num_rows <= kFewRows) {
    launch_tiles<Weight, 4, 2, true>(params, stream);
  } else {
    launch_tiles<Weight, 8, 8, true>(params, stream);
  }
}

}  // namespace

void router(const float* x, const WeightView& weight, const float* bias, int num_rows, float* scores, Stream stream,
            float scale) {
  if (weight.rows < 0 || weight.rows > INT32_MAX || weight.cols < 1 || weight.cols > INT32_MAX)
    invalid("router", "expected a weight [E, H], got [", weight.rows, ", ", weight.cols, "]");
  const RouterParams params{x, weight.data, bias, scores, scale, num_rows, int(weight.cols), int(weight.rows)};
  const bool empty = num_rows == 0 || weight.rows == 0;
  if (weight.dtype == DType::kBF16) {
    if (!empty) launch_router<uint16_t>(params, stream);
  } else if (weight.dtype == DType::kF32) {
    if (!empty) launch_router<float>(params, stream);
  } else {
    fail(ErrorCode::kUnsupported, "router", "router: expected a float32 or bfloat16 weight, got ", dtype_name(weight.dtype));
  }
}

}  // namespace lynx_rt::cuda
