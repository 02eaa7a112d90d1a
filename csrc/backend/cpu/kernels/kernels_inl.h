// The kernels, written over the sixteen-lane type F32x16 of the simd_*.h header that the including file chose.
//
// Sums over a row, as in rmsnorm(): lane l accumulates elements l, l + 16, l + 32, ... in order with fused multiply-add; a short tail
// is padded with zeros; then lanes are folded 16 -> 8 -> 4 -> 2 -> 1. The order depends on the length alone. Elementwise loops use
// plain operations without contraction (-ffp-contract=off), so that the compiler may vectorise them and the remainder is rounded the
// same way. The products with weights are in gemm_inl.h.
#pragma once
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "backend/cpu/kernels/delta_inl.h"
#include "backend/cpu/kernels/gemm_inl.h"
#include "backend/cpu/kernels/kernels.h"
#include "backend/cpu/kernels/lanes_inl.h"

namespace {

// One register tile of weighted_sum(): NB blocks of columns of MJ sums.
template <DType D, int NB, int MJ>
inline void weighted_tile(const char* v, int64_t stride, int64_t tokens, const float* const* p, float* const* acc, int64_t i) {
  // The pragmas are for gcc 12 and NEON, as in multiply_half().
  Vec sum[MJ][NB][2];
#pragma GCC unroll 16
  for (int j = 0; j < MJ; ++j)
#pragma GCC unroll 4
    for (int c = 0; c < NB; ++c)
#pragma GCC unroll 4
      for (int h = 0; h < 2; ++h) sum[j][c][h] = load_vec(acc[j] + i + c * kBlockColumns + h * kVec);
  for (int64_t t = 0; t < tokens; ++t, v += stride) {
    Vec weight[MJ];
#pragma GCC unroll 16
    for (int j = 0; j < MJ; ++j) weight[j] = broadcast_vec(p[j] + t);
#pragma GCC unroll 4
    for (int c = 0; c < NB; ++c) {
      const Vec first = load_half<D, false>(v + c * kBlockColumns * kSize<D>);
#pragma GCC unroll 16
      for (int j = 0; j < MJ; ++j) sum[j][c][0] = fmadd(weight[j], first, sum[j][c][0]);
      const Vec second = load_half<D, true>(v + c * kBlockColumns * kSize<D>);
#pragma GCC unroll 16
      for (int j = 0; j < MJ; ++j) sum[j][c][1] = fmadd(weight[j], second, sum[j][c][1]);
    }
  }
#pragma GCC unroll 16
  for (int j = 0; j < MJ; ++j)
#pragma GCC unroll 4
    for (int c = 0; c < NB; ++c)
#pragma GCC unroll 4
      for (int h = 0; h < 2; ++h) store_vec(acc[j] + i + c * kBlockColumns + h * kVec, sum[j][c][h]);
}

// Most rows of a tile of weighted_sum(): with one block of columns it then has as many sums as a tile of the products.
constexpr int kSumRows = kGroupRows * kTileRows / 2;

// Blocks of a tile with MJ rows.
template <int MJ>
constexpr int sum_blocks() {
  return MJ * 4 <= kSumRows ? 4 : MJ * 2 <= kSumRows ? 2 : 1;
}

template <DType D, int MJ>
void weighted_rows(const char* v, int64_t stride, int64_t tokens, const float* const* p, int64_t d, float* const* acc) {
  constexpr int kBlocks = sum_blocks<MJ>();
  int64_t i = 0;
  for (; i + kBlocks * kBlockColumns <= d; i += kBlocks * kBlockColumns)
    weighted_tile<D, kBlocks, MJ>(v + i * kSize<D>, stride, tokens, p, acc, i);
  for (; i + kBlockColumns <= d; i += kBlockColumns) weighted_tile<D, 1, MJ>(v + i * kSize<D>, stride, tokens, p, acc, i);
  if (i == d) return;
  alignas(64) char last[kBlockColumns * kSize<D>] = {};
  for (int64_t t = 0; t < tokens; ++t) {
    std::memcpy(last, v + t * stride + i * kSize<D>, size_t((d - i) * kSize<D>));
    const float* weights[MJ];
    for (int j = 0; j < MJ; ++j) weights[j] = p[j] + t;
    weighted_tile<D, 1, MJ>(last, 0, 1, weights, acc, i);
  }
}

template <DType D>
void weighted_sum_of(const void* v, int64_t stride, int64_t tokens, const float* const* p, int64_t m, int64_t d,
                     float* const* acc) {
  in_passes<kSumRows>(m, [&](auto rows, int64_t j) {
    weighted_rows<D, rows.number>(static_cast<const char*>(v), stride * kSize<D>, tokens, p + j, d, acc + j);
  });
}

void weighted_sum(const void* v, int64_t stride, DType dtype, int64_t tokens, const float* const* p, int64_t m, int64_t d,
                  float* const* acc) {
  switch (dtype) {
    case DType::kF32: return weighted_sum_of<DType::kF32>(v, stride, tokens, p, m, d, acc);
    case DType::kBF16: return weighted_sum_of<DType::kBF16>(v, stride, tokens, p, m, d, acc);
    case DType::kF16: return weighted_sum_of<DType::kF16>(v, stride, tokens, p, m, d, acc);
  }
}

template <DType D>
void convert_to_f32(const char* in, int64_t n, float* out) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    F32x16 v = load<D>(in + i * kSize<D>);
    std::memcpy(out + i, &v, 64);
  }
  if (i < n) {
    F32x16 v = load_partial<D>(in + i * kSize<D>, n - i);
    std::memcpy(out + i, &v, size_t(n - i) * 4);
  }
}

void to_f32(const void* in, DType dtype, int64_t n, float* out) {
  const char* b = static_cast<const char*>(in);
  switch (dtype) {
    case DType::kF32: std::memcpy(out, in, size_t(n) * 4); return;
    case DType::kBF16: return convert_to_f32<DType::kBF16>(b, n, out);
    case DType::kF16: return convert_to_f32<DType::kF16>(b, n, out);
  }
}

// f32_to_bf16() without branches. A NaN stays NaN: one bit of its mantissa is set.
inline uint16_t bf16_bits(float f) {
  uint32_t u = std::bit_cast<uint32_t>(f);
  uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1)) >> 16;
  uint32_t nan = (u >> 16) | 0x40;
  return uint16_t((u & 0x7fffffffu) > 0x7f800000u ? nan : rounded);
}

void from_f32(const float* in, int64_t n, DType dtype, void* out) {
  uint16_t* o = static_cast<uint16_t*>(out);
  switch (dtype) {
    case DType::kF32: std::memcpy(out, in, size_t(n) * 4); return;
    case DType::kBF16:
      for (int64_t i = 0; i < n; ++i) o[i] = bf16_bits(in[i]);
      return;
    case DType::kF16:
      for (int64_t i = 0; i < n; ++i) o[i] = lynx_rt::f32_to_f16(in[i]);
      return;
  }
}

void round_to(const float* in, int64_t n, DType dtype, float* out) {
  switch (dtype) {
    case DType::kF32: std::memcpy(out, in, size_t(n) * 4); return;
    case DType::kBF16:
      for (int64_t i = 0; i < n; ++i) out[i] = std::bit_cast<float>(uint32_t(bf16_bits(in[i])) << 16);
      return;
    case DType::kF16:
      for (int64_t i = 0; i < n; ++i) out[i] = lynx_rt::f16_to_f32(lynx_rt::f32_to_f16(in[i]));
      return;
  }
}

// A weight is converted to float32 in blocks of this size, so that the loops below need not be repeated per dtype.
constexpr int64_t kBlock = 256;

void rmsnorm(const float* x, const void* weight, DType dtype, int64_t n, float eps, float* out) {
  F32x16 sum = zero();
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    F32x16 v = load_f32(x + i);
    sum = fmadd(v, v, sum);
  }
  if (i < n) {
    F32x16 v = load_partial<DType::kF32>(x + i, n - i);
    sum = fmadd(v, v, sum);
  }
  float scale = 1.0f / std::sqrt(fold(sum) / float(n) + eps);
  float w[kBlock];
  for (int64_t b = 0; b < n; b += kBlock) {
    int64_t count = n - b < kBlock ? n - b : kBlock;
    if (!weight) {
      for (int64_t j = 0; j < count; ++j) out[b + j] = x[b + j] * scale;
      continue;
    }
    to_f32(static_cast<const char*>(weight) + b * lynx_rt::dtype_size(dtype), dtype, count, w);
    for (int64_t j = 0; j < count; ++j) out[b + j] = x[b + j] * scale * w[j];
  }
}

// Sums (x - mean)^2, or x where squared is false, in the lanes' order.
inline float sum_lanes(const float* x, int64_t n, float mean, bool squared) {
  const F32x16 shift = broadcast(mean);
  F32x16 sum = zero();
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    F32x16 v = load_f32(x + i) - shift;
    sum = squared ? fmadd(v, v, sum) : sum + v;
  }
  if (i < n) {
    alignas(64) float buf[kLanes];
    for (int64_t j = 0; j < kLanes; ++j) buf[j] = i + j < n ? x[i + j] : mean;  // adds nothing
    F32x16 v = load_f32(buf) - shift;
    sum = squared ? fmadd(v, v, sum) : sum + v;
  }
  return fold(sum);
}

void layernorm(const float* x, const void* weight, DType dtype, const void* bias, DType bias_dtype, int64_t n, float eps,
               float* out) {
  const float mean = sum_lanes(x, n, 0, false) / float(n);
  const float scale = 1.0f / std::sqrt(sum_lanes(x, n, mean, true) / float(n) + eps);
  float w[kBlock], add[kBlock];
  for (int64_t b = 0; b < n; b += kBlock) {
    const int64_t count = n - b < kBlock ? n - b : kBlock;
    to_f32(static_cast<const char*>(weight) + b * lynx_rt::dtype_size(dtype), dtype, count, w);
    to_f32(static_cast<const char*>(bias) + b * lynx_rt::dtype_size(bias_dtype), bias_dtype, count, add);
    for (int64_t j = 0; j < count; ++j) out[b + j] = (x[b + j] - mean) * scale * w[j] + add[j];
  }
}

// The exponentials are computed in a loop of their own. In one loop with the quotients, a compiler divides every gate by 1 + e^88,
// where exp_f32 clamps, and selects afterwards; those quotients are denormal, and cost more than the rest of the function.
void silu_mul(const float* gate, const float* up, int64_t n, float* out) {
  for (int64_t b = 0; b < n; b += kLanes) {
    const int64_t count = n - b < kLanes ? n - b : kLanes;
    float power[kLanes];
    for (int64_t i = 0; i < count; ++i) power[i] = exp_f32(-gate[b + i]);
    for (int64_t i = 0; i < count; ++i) out[b + i] = gate[b + i] / (1.0f + power[i]) * up[b + i];
  }
}

// x / 2 * (1 + tanh(u)) = x / (1 + e^-2u).
void gelu_tanh_mul(const float* gate, const float* up, int64_t n, float* out) {
  constexpr float kTwiceRoot = 1.5957691216f;  // 2 * sqrt(2 / pi)
  for (int64_t b = 0; b < n; b += kLanes) {
    const int64_t count = n - b < kLanes ? n - b : kLanes;
    float power[kLanes];
    for (int64_t i = 0; i < count; ++i) {
      const float x = gate[b + i];
      power[i] = exp_f32(-kTwiceRoot * (x + 0.044715f * (x * x * x)));
    }
    for (int64_t i = 0; i < count; ++i) out[b + i] = gate[b + i] / (1.0f + power[i]);
    for (int64_t i = 0; up && i < count; ++i) out[b + i] = out[b + i] * up[b + i];
  }
}

// x / 2 * (1 + erf(z)) with z = x / sqrt(2). erfc(|z|) = t exp(p(t) - z^2), t = 2 / (2 + |z|), within 2^-20 of itself: p is the polynomial
// of degree 9 in t that interpolates ln(erfc(z) exp(z^2) / t) at Chebyshev nodes over |z| <= 9.3, within 2^-24.
void gelu(float* x, int64_t n) {
  for (int64_t b = 0; b < n; b += kLanes) {
    const int64_t count = n - b < kLanes ? n - b : kLanes;
    float tail[kLanes];  // erfc(|z|)
    for (int64_t i = 0; i < count; ++i) {
      const float z = std::fabs(x[b + i]) * 0.70710678f, t = 2.0f / (2.0f + z);
      float p = 0.1385593414f;
      p = p * t - 0.6459113359f;
      p = p * t + 1.0739912987f;
      p = p * t - 0.5852668881f;
      p = p * t - 0.1728714854f;
      p = p * t + 0.0509365611f;
      p = p * t + 0.0175261684f;
      p = p * t + 0.3902571499f;
      p = p * t + 0.9982059002f;
      p = p * t - 1.2654266357f;
      tail[i] = t * exp_f32(p - z * z);
    }
    for (int64_t i = 0; i < count; ++i) {
      const float half = 0.5f * x[b + i];
      x[b + i] = half * (half < 0 ? tail[i] : 2.0f - tail[i]);
    }
  }
}

// tanh(x) = 1 - 2 / (e^2x + 1), which cancels near 0: there it is the Taylor series up to x^7, whose next term is below 2^-25 of x.
void soft_cap(float* x, int64_t n, float cap) {
  for (int64_t b = 0; b < n; b += kLanes) {
    const int64_t count = n - b < kLanes ? n - b : kLanes;
    float ratio[kLanes], power[kLanes];
    for (int64_t i = 0; i < count; ++i) {
      ratio[i] = x[b + i] / cap;
      power[i] = exp_f32(2.0f * ratio[i]);
    }
    for (int64_t i = 0; i < count; ++i) {
      const float r = ratio[i], s = r * r, far = 1.0f - 2.0f / (power[i] + 1.0f);
      const float near = r + r * s * (-1.0f / 3 + s * (2.0f / 15 - s * (17.0f / 315)));
      x[b + i] = cap * (s < 0.0256f ? near : far);
    }
  }
}

void sigmoid_mul(const float* gate, int64_t n, float* x) {
  for (int64_t b = 0; b < n; b += kLanes) {
    const int64_t count = n - b < kLanes ? n - b : kLanes;
    float power[kLanes];
    for (int64_t i = 0; i < count; ++i) power[i] = exp_f32(-gate[b + i]);
    for (int64_t i = 0; i < count; ++i) x[b + i] = x[b + i] / (1.0f + power[i]);
  }
}

void clamped_swiglu(const float* gate, const float* up, int64_t n, float alpha, float limit, float* out) {
  for (int64_t b = 0; b < n; b += kLanes) {
    const int64_t count = n - b < kLanes ? n - b : kLanes;
    float g[kLanes], power[kLanes];
    for (int64_t i = 0; i < count; ++i) {
      g[i] = gate[b + i] > limit ? limit : gate[b + i];
      power[i] = exp_f32(-alpha * g[i]);
    }
    for (int64_t i = 0; i < count; ++i) {
      float u = up[b + i] > limit ? limit : up[b + i];
      u = u < -limit ? -limit : u;
      out[b + i] = g[i] / (1.0f + power[i]) * (u + 1.0f);
    }
  }
}

void exponentials(float* x, int64_t n, float scale, float* state) {
  float lane_max[kLanes], lane_sum[kLanes] = {};
  for (int l = 0; l < kLanes; ++l) lane_max[l] = -INFINITY;
  int64_t whole = n / kLanes * kLanes;
  for (int64_t i = 0; i < whole; i += kLanes)
    for (int l = 0; l < kLanes; ++l) lane_max[l] = x[i + l] > lane_max[l] ? x[i + l] : lane_max[l];
  for (int64_t i = whole; i < n; ++i) lane_max[i - whole] = x[i] > lane_max[i - whole] ? x[i] : lane_max[i - whole];
  float max = -INFINITY;
  for (int l = 0; l < kLanes; ++l) max = lane_max[l] > max ? lane_max[l] : max;
  for (int64_t i = 0; i < n; ++i) x[i] = exp_f32((x[i] - max) * scale);
  for (int64_t i = 0; i < whole; i += kLanes)
    for (int l = 0; l < kLanes; ++l) lane_sum[l] += x[i + l];
  for (int64_t i = whole; i < n; ++i) lane_sum[i - whole] += x[i];
  float sum = 0;
  for (int l = 0; l < kLanes; ++l) sum += lane_sum[l];
  state[0] = max;
  state[1] = sum;
}

void merge(const float* part, int64_t d, float scale, float* state) {
  const float max = part[d] > state[d] ? part[d] : state[d];
  const float by = exp_f32((state[d] - max) * scale), part_by = exp_f32((part[d] - max) * scale);
  for (int64_t i = 0; i < d; ++i) state[i] = state[i] * by + part[i] * part_by;
  state[d + 1] = state[d + 1] * by + part[d + 1] * part_by;
  state[d] = max;
}

void rope(float* x, const float* cos, const float* sin, int64_t half) {
  for (int64_t i = 0; i < half; ++i) {
    float a = x[i], b = x[i + half];
    x[i] = a * cos[i] - b * sin[i];
    x[i + half] = b * cos[i] + a * sin[i];
  }
}

void rope_interleaved(float* x, const float* cos, const float* sin, int64_t half) {
  for (int64_t i = 0; i < half; ++i) {
    const float a = x[2 * i], b = x[2 * i + 1];
    x[2 * i] = a * cos[i] - b * sin[i];
    x[2 * i + 1] = b * cos[i] + a * sin[i];
  }
}

void axpy(float a, const float* x, int64_t n, float* y) {
  for (int64_t i = 0; i < n; ++i) y[i] = y[i] + a * x[i];
}

double read_sum(const void* p, int64_t bytes) {
  const char* b = static_cast<const char*>(p);
  F32x16 acc[8];
  for (auto& a : acc) a = zero();
  for (int64_t i = 0; i + 512 <= bytes; i += 512)
    for (int j = 0; j < 8; ++j) {
      prefetch(b + i + j * 64 + 4096);
      acc[j] = acc[j] + load_f32(b + i + j * 64);
    }
  double sum = 0;
  for (auto& a : acc) sum += fold(a);
  return sum;
}

constexpr lynx_rt::cpu::Kernels make_kernels(lynx_rt::Isa isa, lynx_rt::cpu::GemmFn bf16, lynx_rt::cpu::PairsFn pairs = nullptr) {
  return {isa,
          {gemm<PlainTile<DType::kF32>>, gemm<PlainTile<DType::kBF16>>, gemm<PlainTile<DType::kF16>>},
          kBlockColumns,
          split_pairs,
          join_pairs,
          bf16,
          weighted_sum,
          to_f32,
          from_f32,
          round_to,
          rmsnorm,
          layernorm,
          silu_mul,
          gelu_tanh_mul,
          gelu,
          sigmoid_mul,
          clamped_swiglu,
          exponentials,
          soft_cap,
          merge,
          rope,
          rope_interleaved,
          axpy,
          {short_conv, unit_norm, run_state<true, false>, run_state<true, true>, run_state<false, false>, delta_row},
          read_sum,
          lynx_rt::kDrawKernels,
          pairs};
}

}  // namespace
