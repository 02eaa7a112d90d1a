// q/k norm, rotary embedding and the KV write, for grouped-query and for multi-head latent attention. One launch; one more before it
// where the norm is over all heads.
//
// Work split: a warp per (row, head): A + 2 G heads, or A and one more that writes the latent. The squares of a head and of the
// latent are summed in the CPU's order: 16 accumulators over elements l, l + 16, .., folded in halves (both halves of the warp
// hold the same values), so that a norm before the rotation, and the rotation, have the CPU's bits. A norm after the rotation sums
// each lane's values, then the lanes; one over all heads takes a block per row. Both orders depend on sizes alone.
// Memory traffic of qkv_post: 4 (A + 2 G) D bytes read per row, 4 A D written back for q and 4 G D to the cache. Norm weights and the
// table's rows come from L2. The sum of squares reads its head a second time, from L1. Bound: memory latency, as nothing is reused
// but the 2 D bytes of cos and sin. Limits: D even and at most 512; a bfloat16 cache.
#include <cmath>

#include "backend/cuda/attention/attention.h"
#include "backend/cuda/runtime/launch.h"
#include "backend/cuda/runtime/ptx.cuh"
#include "base/error.h"

namespace lynx_rt::cuda {

namespace {

constexpr int kWarps = 4;
constexpr int kMaxPairs = kMaxValueDim / 2 / kWarpSize;  // most pairs of columns per lane
constexpr int kWidthThreads = 256;

struct QkvPostParams {
  float* qkv;
  const float* q_norm;
  const float* k_norm;
  const float* scales;  // kWidth: [T, 2] 1 / rms of all of q and of k
  QkNorm norm;
  RopeTable rope;
  const int32_t* positions;  // for the temperature
  const int32_t* rope_rows;
  const int64_t* slots;
  uint16_t* k_cache;
  uint16_t* v_cache;
  int64_t block_size;
  int64_t num_jobs;  // rows * heads
  int num_q_heads, num_kv_heads, head_dim;
  int q_head;  // columns from one head of q to the next
  float eps, clip, temperature_floor, temperature_scale;
  bool v_norm, v_from_k;
};

// Returns 1 / sqrt(mean(x^2) + eps), in every lane.
__device__ float inverse_rms(const float* x, int d, float eps) {
  float sum = 0;
  for (int i = lane_id() % 16; i < d; i += 16) sum = fmaf(x[i], x[i], sum);
  for (int bit = 8; bit > 0; bit /= 2) sum += shuffle_xor(kFullWarp, sum, bit);
  return 1.0f / sqrtf(sum / float(d) + eps);
}

// The columns of pair i. The first pairs are the columns that are rotated together, the others are neighbours.
struct Pair {
  int low, high;
};
__device__ Pair pair_at(const RopeTable& rope, int i) {
  const int half = int(rope.dim) / 2;
  if (i < half && !rope.interleaved) return {i, i + half};
  return {2 * i, 2 * i + 1};
}

__device__ float clipped(float v, float to) { return v > to ? to : v < -to ? -to : v; }  // lets NaN through

// kPairs: most pairs of columns of a lane.
template <int kPairs>
__global__ void __launch_bounds__(kWarps* kWarpSize) qkv_post_kernel(const __grid_constant__ QkvPostParams p) {
  grid_wait();
  grid_launch_dependents();
  const int64_t job = int64_t(blockIdx.x) * kWarps + warp_id();
  if (job >= p.num_jobs) return;
  const int num_heads = p.num_q_heads + 2 * p.num_kv_heads, d = p.head_dim, pairs = d / 2, half = int(p.rope.dim) / 2;
  const int64_t t = job / num_heads;
  const int head = int(job % num_heads);
  const bool is_q = head < p.num_q_heads, is_v = head >= p.num_q_heads + p.num_kv_heads;
  const int64_t slot = p.slots[t];
  if (!is_q && slot < 0) return;

  const int row_columns = p.num_q_heads * p.q_head + 2 * p.num_kv_heads * d;
  // The columns of k are only read here, so v may take them too.
  const int own = is_v && p.v_from_k ? head - p.num_kv_heads : head;
  float* x = p.qkv + t * row_columns + (is_q ? head * p.q_head : p.num_q_heads * p.q_head + (own - p.num_q_heads) * d);
  float low[kPairs], high[kPairs];
  LYNX_UNROLL
  for (int j = 0; j < kPairs; ++j) {
    const int i = lane_id() + j * kWarpSize;
    const Pair at = pair_at(p.rope, i);
    low[j] = i < pairs ? x[at.low] : 0;
    high[j] = i < pairs ? x[at.high] : 0;
  }
  const int position = p.positions[t] < 0 ? 0 : p.positions[t];
  const int kv_head = is_v ? head - p.num_q_heads - p.num_kv_heads : head - p.num_q_heads;
  if (is_v && p.v_norm) {
    const float scale = inverse_rms(x, d, p.eps);
    LYNX_UNROLL
    for (int j = 0; j < kPairs; ++j) low[j] *= scale, high[j] *= scale;
  }
  if (!is_v) {
    const float* norm = is_q ? p.q_norm : p.k_norm;
    const bool width = p.norm == QkNorm::kWidth, before = norm && (width || p.norm == QkNorm::kHead);
    const float scale = !before ? 1 : width ? p.scales[2 * t + !is_q] : inverse_rms(x, d, p.eps);
    if (width && norm) norm += int64_t(is_q ? head : kv_head) * d;
    sync_warp();  // all have read x
    const int64_t rope_row = p.rope_rows[t] < 0 ? 0 : p.rope_rows[t];
    const float* cos = p.rope.cos + rope_row * half;
    const float* sin = p.rope.sin + rope_row * half;
    LYNX_UNROLL
    for (int j = 0; j < kPairs; ++j) {
      const int i = lane_id() + j * kWarpSize;
      if (i >= pairs) break;
      const Pair at = pair_at(p.rope, i);
      float a = before ? low[j] * scale * norm[at.low] : low[j], b = before ? high[j] * scale * norm[at.high] : high[j];
      if (p.clip > 0) a = clipped(a, p.clip), b = clipped(b, p.clip);
      low[j] = i < half ? a * cos[i] - b * sin[i] : a;
      high[j] = i < half ? b * cos[i] + a * sin[i] : b;
    }
    const bool unit = p.norm == QkNorm::kUnitAfterRope;
    if (unit || (norm && p.norm == QkNorm::kHeadAfterRope)) {
      float sum = 0;
      LYNX_UNROLL
      for (int j = 0; j < kPairs; ++j) sum = fmaf(high[j], high[j], fmaf(low[j], low[j], sum));  // 0 after the last pair
      for (int bit = 16; bit > 0; bit /= 2) sum += shuffle_xor(kFullWarp, sum, bit);
      const float after = 1.0f / sqrtf(sum / float(d) + p.eps);
      LYNX_UNROLL
      for (int j = 0; j < kPairs; ++j) {
        const int i = lane_id() + j * kWarpSize;
        if (i >= pairs) break;
        const Pair at = pair_at(p.rope, i);
        low[j] = unit ? low[j] * after : low[j] * after * norm[at.low];
        high[j] = unit ? high[j] * after : high[j] * after * norm[at.high];
      }
    }
  }
  float factor = 1;
  if (is_q && p.temperature_floor > 0)
    factor += p.temperature_scale * log1pf(floorf((float(position) + 1.0f) / p.temperature_floor));
  uint16_t* cache = is_v ? p.v_cache : p.k_cache;
  const int64_t place = is_q ? 0 : (slot / p.block_size * p.num_kv_heads + kv_head) * p.block_size + slot % p.block_size;
  LYNX_UNROLL
  for (int j = 0; j < kPairs; ++j) {
    const int i = lane_id() + j * kWarpSize;
    if (i >= pairs) break;
    const Pair at = pair_at(p.rope, i);
    if (is_v && p.clip > 0) low[j] = clipped(low[j], p.clip), high[j] = clipped(high[j], p.clip);
    if (is_q) {
      x[at.low] = low[j] * factor, x[at.high] = high[j] * factor;
    } else {
      cache[place * d + at.low] = to_bf16(low[j]), cache[place * d + at.high] = to_bf16(high[j]);
    }
  }
}

// scales[t, 0] and [t, 1] = 1 / sqrt(mean(x^2) + eps) over all heads of q and of k. Blocks (t, 0) and (t, 1).
__global__ void __launch_bounds__(kWidthThreads) width_kernel(const __grid_constant__ QkvPostParams p, float* scales) {
  grid_wait();
  grid_launch_dependents();
  const int64_t t = blockIdx.x;
  const int q_columns = p.num_q_heads * p.head_dim, kv_columns = p.num_kv_heads * p.head_dim;
  const bool is_k = blockIdx.y == 1;
  const int columns = is_k ? kv_columns : q_columns;
  const float* x = p.qkv + t * (q_columns + 2 * kv_columns) + (is_k ? q_columns : 0);
  float sum = 0;
  for (int i = int(threadIdx.x); i < columns; i += kWidthThreads) sum = fmaf(x[i], x[i], sum);
  for (int bit = 16; bit > 0; bit /= 2) sum += shuffle_xor(kFullWarp, sum, bit);
  float* of_warp = reinterpret_cast<float*>(dynamic_shared());
  if (lane_id() == 0) of_warp[warp_id()] = sum;
  sync_block();  // of_warp
  if (threadIdx.x != 0) return;
  sum = 0;
  for (int warp = 0; warp < kWidthThreads / kWarpSize; ++warp) sum += of_warp[warp];
  scales[2 * t + is_k] = 1.0f / sqrtf(sum / float(columns) + p.eps);
}

// --- multi-head latent attention

struct MlaPostParams {
  MlaPostArgs args;
  const float* norm;
  const int32_t* rope_rows;
  const int64_t* slots;
  uint16_t* cache;
  int64_t num_jobs;  // rows * (heads + 1)
  int latent;        // L
};

__global__ void __launch_bounds__(kWarps* kWarpSize) mla_post_kernel(const __grid_constant__ MlaPostParams p) {
  grid_wait();
  grid_launch_dependents();
  const int64_t job = int64_t(blockIdx.x) * kWarps + warp_id();
  if (job >= p.num_jobs) return;
  const int num_heads = int(p.args.num_heads), latent = p.latent, rotated = int(p.args.rope.dim), columns = latent + rotated;
  const int64_t t = job / (num_heads + 1);
  const int head = int(job % (num_heads + 1));
  const bool is_q = head < num_heads;
  const int64_t slot = p.slots[t];
  if (!is_q && slot < 0) return;

  const int64_t rope_row = p.rope_rows[t] < 0 ? 0 : p.rope_rows[t];
  const float* cos = p.args.rope.cos + rope_row * (rotated / 2);
  const float* sin = p.args.rope.sin + rope_row * (rotated / 2);
  const float* kv = p.args.kv + t * columns;
  const float* x = is_q ? p.args.q + (t * num_heads + head) * (p.args.nope + rotated) + p.args.nope : kv + latent;
  float* to_q = p.args.latent_q + (t * num_heads + head) * columns + latent;
  uint16_t* to_cache = p.cache + slot * columns;
  for (int i = lane_id(); i < rotated / 2; i += kWarpSize) {
    const Pair at = pair_at(p.args.rope, i);
    const float a = x[at.low] * cos[i] - x[at.high] * sin[i], b = x[at.high] * cos[i] + x[at.low] * sin[i];
    if (is_q) {
      to_q[at.low] = a, to_q[at.high] = b;
    } else {
      to_cache[latent + at.low] = to_bf16(a), to_cache[latent + at.high] = to_bf16(b);
    }
  }
  if (is_q) return;
  const float scale = inverse_rms(kv, latent, p.args.eps);
  for (int i = lane_id(); i < latent; i += kWarpSize) to_cache[i] = to_bf16(kv[i] * scale * p.norm[i]);
}

void check_cache(const char* op, const KvCacheView& cache) {
  if (cache.dtype != DType::kBF16)
    fail(ErrorCode::kUnsupported, op, op, ": KV cache: expected bfloat16, got ", dtype_name(cache.dtype));
}

}  // namespace

void qkv_post(const QkvPostArgs& args, int num_rows, const int32_t* positions, const int32_t* rope_rows, const int64_t* slots,
              const KvCacheView& cache, float* scales, Stream stream) {
  const int64_t d = cache.head_dim;
  check_cache("qkv_post", cache);
  if (d < 2 || d > kMaxValueDim || d % 2)
    fail(ErrorCode::kUnsupported, "qkv_post", "qkv_post: head size: expected an even number of 2..", kMaxValueDim, ", got ", d);
  if (cache.v_columns() != d || !cache.v != !cache.k)
    fail(ErrorCode::kUnsupported, "qkv_post", "qkv_post: head size of values: expected ", d, " and a V, got ", cache.v_columns());
  if (args.rope.dim < 0 || args.rope.dim > d || args.rope.dim % 2)
    invalid("qkv_post", "rotated columns: expected an even number of 0..", d, ", got ", args.rope.dim);
  if (num_rows <= 0) return;

  QkvPostParams p = {};
  p.qkv = args.qkv;
  p.q_norm = static_cast<const float*>(args.q_norm.data);
  p.k_norm = static_cast<const float*>(args.k_norm.data);
  p.scales = scales;
  p.norm = args.norm;
  p.rope = args.rope;
  p.positions = positions;
  p.rope_rows = rope_rows;
  p.slots = slots;
  p.k_cache = static_cast<uint16_t*>(cache.k);
  p.v_cache = static_cast<uint16_t*>(cache.v);
  p.block_size = cache.block_size;
  p.num_jobs = int64_t(num_rows) * (args.num_heads + 2 * cache.num_kv_heads);
  p.num_q_heads = int(args.num_heads);
  p.num_kv_heads = int(cache.num_kv_heads);
  p.head_dim = int(d);
  p.q_head = int(args.gated ? 2 * d : d);
  p.eps = args.eps;
  p.clip = args.clip;
  p.temperature_floor = args.temperature_floor;
  p.temperature_scale = args.temperature_scale;
  p.v_norm = args.v_norm;
  p.v_from_k = args.v_from_k;
  if (args.norm == QkNorm::kWidth)
    launch(width_kernel, Dim3(unsigned(num_rows), 2), kWidthThreads, kWidthThreads / kWarpSize * 4, stream, p, scales);
  launch(d <= 256 ? qkv_post_kernel<4> : qkv_post_kernel<kMaxPairs>, unsigned(ceil_div(p.num_jobs, kWarps)), kWarps * kWarpSize,
         0, stream, p);
}

void mla_post(const MlaPostArgs& args, int num_rows, const int32_t* rope_rows, const int64_t* slots, const KvCacheView& cache,
              Stream stream) {
  check_cache("mla_post", cache);
  const int64_t latent = args.kv_norm.cols;
  if (args.rope.dim < 0 || args.rope.dim % 2 || latent < 1 || latent + args.rope.dim != cache.head_dim || cache.num_kv_heads != 1)
    invalid("mla_post", "KV cache: expected 1 head of ", latent, " + ", args.rope.dim, " columns, the latter even, got ",
            cache.num_kv_heads, " of ", cache.head_dim);
  if (num_rows <= 0) return;
  const int64_t jobs = int64_t(num_rows) * (args.num_heads + 1);
  const MlaPostParams p{
      args, static_cast<const float*>(args.kv_norm.data), rope_rows, slots, static_cast<uint16_t*>(cache.k), jobs, int(latent)};
  launch(mla_post_kernel, unsigned(ceil_div(jobs, kWarps)), kWarps * kWarpSize, 0, stream, p);
}

}  // namespace lynx_rt::cuda
