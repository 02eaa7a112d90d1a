// Replaces csrc/backend/cuda/runtime/ptx.cuh, which has the contracts, in host builds: the same functions, on fibers.
#pragma once
#include <bit>
#include <cmath>
#include <cstdint>

#include "base/types.h"
#include "simt.h"

#define LYNX_UNROLL
#define LYNX_ROLLED
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define threadIdx (simt::current->thread)
#define blockIdx (simt::current->block)
#define blockDim (simt::current->block_dim)
#define gridDim (simt::current->grid_dim)

namespace lynx_rt::cuda {

inline constexpr uint32_t kFullWarp = 0xffffffffu;
inline constexpr int kWarpSize = 32;

inline int lane_id() { return int(threadIdx.x % kWarpSize); }
inline int warp_id() { return int(threadIdx.x / kWarpSize); }
inline unsigned char* dynamic_shared() { return simt::current->shared; }

inline void sync_block() { simt::sync_block(); }
inline void sync_warp(uint32_t mask = kFullWarp) { simt::collective({simt::Op::kSyncWarp, mask, nullptr, nullptr, 0, 0}); }
inline void sync_named(int id, int threads) { simt::sync_named(id, threads); }

template <class T>
T shuffle(uint32_t mask, T value, int source) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  T out;
  simt::collective({simt::Op::kShuffle, mask, &value, &out, sizeof(T), source % kWarpSize});
  return out;
}
template <class T>
T shuffle_xor(uint32_t mask, T value, int lane_bits) {
  return shuffle(mask, value, lane_id() ^ lane_bits);
}
template <class T>
T shuffle_up(uint32_t mask, T value, int delta) {
  return shuffle(mask, value, lane_id() >= delta ? lane_id() - delta : lane_id());
}
template <class T>
T shuffle_down(uint32_t mask, T value, int delta) {
  return shuffle(mask, value, lane_id() + delta < kWarpSize ? lane_id() + delta : lane_id());
}

inline uint32_t collective_u32(simt::Op op, uint32_t mask, uint32_t value) {
  uint32_t out;
  simt::collective({op, mask, &value, &out, sizeof value, 0});
  return out;
}
inline uint32_t ballot(uint32_t mask, bool condition) { return collective_u32(simt::Op::kBallot, mask, condition); }
inline uint32_t match_any(uint32_t mask, uint32_t value) { return collective_u32(simt::Op::kMatch, mask, value); }
inline uint32_t reduce_max(uint32_t mask, uint32_t value) { return collective_u32(simt::Op::kMax, mask, value); }
inline uint32_t reduce_min(uint32_t mask, uint32_t value) { return collective_u32(simt::Op::kMin, mask, value); }
inline uint32_t reduce_add(uint32_t mask, uint32_t value) { return collective_u32(simt::Op::kAdd, mask, value); }

struct alignas(8) Words2 {
  uint32_t x, y;
};
struct alignas(16) Words4 {
  uint32_t x, y, z, w;
};
inline Words4 load_once(const void* p) { return *static_cast<const Words4*>(p); }
inline Words2 load_once_8(const void* p) { return *static_cast<const Words2*>(p); }
inline void prefetch_line(const void* p) { (void)*static_cast<const volatile char*>(p); }
inline Words4 load_16(const void* p) { return *static_cast<const Words4*>(p); }

inline void copy_async_16(void* shared, const void* global, int source_bytes = 16) {
  simt::copy_async(shared, global, source_bytes);
}
inline void copy_commit() { simt::copy_commit(); }
template <int kLeft>
void copy_wait() {
  simt::copy_wait(kLeft);
}

inline void load_matrix_x4(uint32_t (&out)[4], const void* row) {
  simt::collective({simt::Op::kLoadMatrix, kFullWarp, row, out, 0, 0});
}
inline void load_matrix_x4_transposed(uint32_t (&out)[4], const void* row) {
  simt::collective({simt::Op::kLoadMatrixTransposed, kFullWarp, row, out, 0, 0});
}
inline void mma_bf16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  const simt::MmaIn in{a, b, c};
  simt::collective({simt::Op::kMma, kFullWarp, &in, c, 0, 0});
}

inline void grid_wait() {}  // a grid only runs after all earlier grids
inline void grid_launch_dependents() {}

inline uint16_t to_bf16(float v) { return f32_to_bf16(v); }
inline uint32_t to_bf16x2(float low, float high) { return f32_to_bf16(low) | uint32_t(f32_to_bf16(high)) << 16; }
inline float from_bf16(uint16_t v) { return bf16_to_f32(v); }
// In float64 the product is exact and so is every sum of it with what kernels add.
inline uint32_t fma_bf16x2(uint32_t a, uint32_t b, uint32_t c) {
  const auto half = [&](int shift) {
    const auto value = [shift](uint32_t v) { return double(bf16_to_f32(uint16_t(v >> shift))); };
    return uint32_t(f32_to_bf16(float(value(a) * value(b) + value(c)))) << shift;
  };
  return half(0) | half(16);
}
inline uint32_t to_f16x2(float low, float high) { return f32_to_f16(low) | uint32_t(f32_to_f16(high)) << 16; }
inline float from_f16(uint16_t v) { return f16_to_f32(v); }
// Returns an exponential that is off by an ulp, up or down, for two arguments in three, as a device's may be.
inline float accurate_exp(float v) {
  const float exact = std::exp(v);
  const uint32_t step = std::bit_cast<uint32_t>(v) % 3;
  if (v == 0 || exact == 0 || exact > 3e38f || step == 2) return exact;
  return std::nextafter(exact, step == 0 ? 0.0f : HUGE_VALF);
}
inline float accurate_erf(float v) { return std::erf(v); }
inline float fast_exp(float v) { return std::exp(v); }

inline int count_bits(uint32_t v) { return std::popcount(v); }
inline int lowest_bit(uint32_t v) { return std::countr_zero(v); }
inline uint32_t float_bits(float v) { return std::bit_cast<uint32_t>(v); }
inline float bits_float(uint32_t v) { return std::bit_cast<float>(v); }
inline void atomic_or(uint32_t* p, uint32_t bits) {
  __atomic_fetch_or(p, bits, __ATOMIC_RELAXED);
  simt::after_atomic();
}
inline uint32_t atomic_fetch_add(uint32_t* p, uint32_t v) {
  const uint32_t old = __atomic_fetch_add(p, v, __ATOMIC_RELAXED);
  simt::after_atomic();
  return old;
}
inline void atomic_add(uint32_t* p, uint32_t v) {
  __atomic_fetch_add(p, v, __ATOMIC_RELAXED);
  simt::after_atomic();
}
inline void atomic_min(uint32_t* p, uint32_t v) {
  uint32_t old = __atomic_load_n(p, __ATOMIC_RELAXED);
  while (v < old && !__atomic_compare_exchange_n(p, &old, v, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  simt::after_atomic();
}

}  // namespace lynx_rt::cuda
