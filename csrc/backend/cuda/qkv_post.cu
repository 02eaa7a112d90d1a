// q/k norm, rotary embedding and the KV write, one launch.
//
// Work split: a warp per (row, head) over the A + 2 G heads. The squares are summed as the CPU does it: 16 accumulators over
// elements l, l + 16, .., folded in halves (both halves of the warp hold the same), so that norm and rotation have the CPU's
// bits. Memory traffic: 4 (A + 2 G) D bytes read per row, 4 A D written back for q and 4 G D to the cache. Norm weights and the
// table's rows come from L2. The sum of squares reads its head a second time, from L1. Limits: D even and at most 256; a bfloat16
// cache. Memory latency: nothing is reused but the 2 D bytes of cos and sin.
#include <cmath>

#include "backend/cuda/attention.h"
#include "backend/cuda/launch.h"
#include "backend/cuda/ptx.cuh"
#include "base/error.h"

namespace lynx_rt::cuda {

namespace {

constexpr int kWarps = 4;
constexpr int kMaxHeadDim = 256;
constexpr int kPairs = kMaxHeadDim / 2 / kWarpSize;  // rotated pairs per lane, at most

struct QkvPostParams {
  float* qkv;
  const float* q_norm;
  const float* k_norm;
  RopeTable rope;
  const int32_t* positions;
  const int64_t* slots;
  uint16_t* k_cache;
  uint16_t* v_cache;
  int64_t block_size;
  int64_t num_jobs;  // rows * heads
  int num_q_heads, num_kv_heads, head_dim;
  float eps;
};

// 1 / sqrt(mean(x^2) + eps) in every lane.
__device__ float inverse_rms(const float* x, int d, float eps) {
  float sum = 0;
  for (int i = lane_id() % 16; i < d; i += 16) sum = fmaf(x[i], x[i], sum);
  for (int bit = 8; bit > 0; bit /= 2) sum += shuffle_xor(kFullWarp, sum, bit);
  return 1.0f / sqrtf(sum / float(d) + eps);
}

__global__ void __launch_bounds__(kWarps* kWarpSize) qkv_post_kernel(const __grid_constant__ QkvPostParams p) {
  grid_wait();
  grid_launch_dependents();
  const int64_t job = int64_t(blockIdx.x) * kWarps + warp_id();
  if (job >= p.num_jobs) return;
  const int num_heads = p.num_q_heads + 2 * p.num_kv_heads, d = p.head_dim, half = d / 2;
  const int64_t t = job / num_heads;
  const int head = int(job % num_heads);
  const bool is_q = head < p.num_q_heads, is_v = head >= p.num_q_heads + p.num_kv_heads;
  const int64_t slot = p.slots[t];
  if (!is_q && slot < 0) return;

  float* x = p.qkv + job * d;
  float low[kPairs], high[kPairs];  // elements i and i + D / 2, i = lane, lane + 32, ..
  LYNX_UNROLL
  for (int j = 0; j < kPairs; ++j) {
    const int i = lane_id() + j * kWarpSize;
    low[j] = i < half ? x[i] : 0;
    high[j] = i < half ? x[i + half] : 0;
  }
  if (!is_v) {
    const float* norm = is_q ? p.q_norm : p.k_norm;
    const float scale = norm ? inverse_rms(x, d, p.eps) : 1;
    sync_warp();  // all have read x
    const int64_t position = p.positions[t] < 0 ? 0 : p.positions[t];
    const float* cos = p.rope.cos + position * half;
    const float* sin = p.rope.sin + position * half;
    LYNX_UNROLL
    for (int j = 0; j < kPairs; ++j) {
      const int i = lane_id() + j * kWarpSize;
      if (i >= half) break;
      const float a = norm ? low[j] * scale * norm[i] : low[j], b = norm ? high[j] * scale * norm[i + half] : high[j];
      low[j] = a * cos[i] - b * sin[i];
      high[j] = b * cos[i] + a * sin[i];
    }
  }
  const int kv_head = is_v ? head - p.num_q_heads - p.num_kv_heads : head - p.num_q_heads;
  uint16_t* cache = is_v ? p.v_cache : p.k_cache;
  const int64_t place = is_q ? 0 : (slot / p.block_size * p.num_kv_heads + kv_head) * p.block_size + slot % p.block_size;
  LYNX_UNROLL
  for (int j = 0; j < kPairs; ++j) {
    const int i = lane_id() + j * kWarpSize;
    if (i >= half) break;
    if (is_q) {
      x[i] = low[j], x[i + half] = high[j];
    } else {
      cache[place * d + i] = to_bf16(low[j]), cache[place * d + i + half] = to_bf16(high[j]);
    }
  }
}

}  // namespace

void qkv_post(float* qkv, int num_rows, int num_heads, const float* q_norm, const float* k_norm, float eps, const RopeTable& rope,
              const int32_t* positions, const int64_t* slots, const KvCacheView& cache, Stream stream) {
  const int64_t d = cache.head_dim;
  if (cache.dtype != DType::kBF16)
    fail(ErrorCode::kUnsupported, "qkv_post", "qkv_post: KV cache: expected bfloat16, got ", dtype_name(cache.dtype));
  if (d < 2 || d > kMaxHeadDim || d % 2)
    fail(ErrorCode::kUnsupported, "qkv_post", "qkv_post: head size: expected an even number of 2..", kMaxHeadDim, ", got ", d);
  if (num_rows <= 0) return;

  QkvPostParams p = {};
  p.qkv = qkv;
  p.q_norm = q_norm;
  p.k_norm = k_norm;
  p.rope = rope;
  p.positions = positions;
  p.slots = slots;
  p.k_cache = static_cast<uint16_t*>(cache.k);
  p.v_cache = static_cast<uint16_t*>(cache.v);
  p.block_size = cache.block_size;
  p.num_jobs = int64_t(num_rows) * (num_heads + 2 * cache.num_kv_heads);
  p.num_q_heads = num_heads;
  p.num_kv_heads = int(cache.num_kv_heads);
  p.head_dim = int(d);
  p.eps = eps;
  launch(qkv_post_kernel, unsigned(ceil_div(p.num_jobs, kWarps)), kWarps * kWarpSize, 0, stream, p);
}

}  // namespace lynx_rt::cuda
