// The instructions that C++ cannot express, as functions with a defined meaning. Kernels use these functions only, and
// tests/simt/backend/cuda/runtime/ptx.cuh implements them for a host compiler. Only this file has architecture conditionals.
// tests/simt/test_nvcc.py assembles it for every supported architecture. Nothing here has run on a GPU yet: tests/simt/test_simt.cc
// is the conformance test to run there.
//
// Warp collectives: every lane of `mask` calls the same function with the same mask, and the caller is in it. They order no
// memory; only sync_warp() and the barriers do. In kernels, the comment after a barrier names the data that it makes visible.
#pragma once
#include <cstdint>

#define LYNX_UNROLL _Pragma("unroll")    // unrolls the next loop, so that the arrays that it indexes stay in registers
#define LYNX_ROLLED _Pragma("unroll 1")  // keeps the next loop as it is, where registers are short

namespace lynx_rt::cuda {

inline constexpr uint32_t kFullWarp = 0xffffffffu;
inline constexpr int kWarpSize = 32;

__device__ __forceinline__ int lane_id() { return int(threadIdx.x % kWarpSize); }  // blocks are one-dimensional
__device__ __forceinline__ int warp_id() { return int(threadIdx.x / kWarpSize); }

// The block's dynamic shared memory, 128-byte aligned; its content at the start is undefined.
__device__ __forceinline__ unsigned char* dynamic_shared() {
  extern __shared__ __align__(128) unsigned char bytes[];
  return bytes;
}

// --- barriers: what a participant wrote before is visible to all participants after

__device__ __forceinline__ void sync_block() { __syncthreads(); }
__device__ __forceinline__ void sync_warp(uint32_t mask = kFullWarp) { __syncwarp(mask); }
// `threads` threads of the block (a multiple of 32) wait for each other at barrier `id`, 1..15.
__device__ __forceinline__ void sync_named(int id, int threads) {
  asm volatile("barrier.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// --- warp collectives

// Returns the value of lane `source`, which is in the mask. T: 4 or 8 bytes.
template <class T>
__device__ __forceinline__ T shuffle(uint32_t mask, T value, int source) {
  return __shfl_sync(mask, value, source);
}
template <class T>
__device__ __forceinline__ T shuffle_xor(uint32_t mask, T value, int lane_bits) {
  return __shfl_xor_sync(mask, value, lane_bits);
}
// Returns the value of lane - delta, or the caller's own where there is no such lane.
template <class T>
__device__ __forceinline__ T shuffle_up(uint32_t mask, T value, int delta) {
  return __shfl_up_sync(mask, value, unsigned(delta));
}
template <class T>
__device__ __forceinline__ T shuffle_down(uint32_t mask, T value, int delta) {
  return __shfl_down_sync(mask, value, unsigned(delta));
}
// Bit l is set where lane l is in the mask and its condition holds.
__device__ __forceinline__ uint32_t ballot(uint32_t mask, bool condition) { return __ballot_sync(mask, condition); }
// Returns the lanes of the mask that have the caller's value.
__device__ __forceinline__ uint32_t match_any(uint32_t mask, uint32_t value) { return __match_any_sync(mask, value); }
__device__ __forceinline__ uint32_t reduce_max(uint32_t mask, uint32_t value) { return __reduce_max_sync(mask, value); }
__device__ __forceinline__ uint32_t reduce_min(uint32_t mask, uint32_t value) { return __reduce_min_sync(mask, value); }
__device__ __forceinline__ uint32_t reduce_add(uint32_t mask, uint32_t value) { return __reduce_add_sync(mask, value); }

// --- global memory

struct alignas(8) Words2 {
  uint32_t x, y;
};
struct alignas(16) Words4 {
  uint32_t x, y, z, w;
};

// Loads 16 bytes that no other thread reads, bypassing the first-level cache. The memory is constant while the kernel runs, but .nc is
// not used: ptxas moves such a load below a grid_wait() that follows it, where it no longer overlaps with anything.
__device__ __forceinline__ Words4 load_once(const void* p) {
  Words4 v;
  asm volatile("ld.global.L1::no_allocate.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}
__device__ __forceinline__ Words2 load_once_8(const void* p) {
  Words2 v;
  asm volatile("ld.global.L1::no_allocate.L2::256B.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p));
  return v;
}
// Starts loading the cache line of p into the second-level cache, for later reads. The memory is constant, so this may come before
// grid_wait().
__device__ __forceinline__ void prefetch_line(const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }
// Loads 16 bytes that other threads of the block read, too.
__device__ __forceinline__ Words4 load_16(const void* p) { return *static_cast<const Words4*>(p); }

// --- asynchronous copies, global to shared, 16 bytes, both addresses 16-byte aligned

// Copies the first `source_bytes` (0..16) and fills the rest with zeros. The copy is complete after a copy_wait() of the same thread;
// other threads see it after a barrier that follows this wait.
__device__ __forceinline__ void copy_async_16(void* shared, const void* global, int source_bytes = 16) {
  const uint32_t to = uint32_t(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(source_bytes) : "memory");
}
__device__ __forceinline__ void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until all committed groups but the newest kLeft are complete.
template <int kLeft>
__device__ __forceinline__ void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}

// --- matrix fragments; g = lane / 4, q = lane % 4

// Loads four 8x8 matrices of 16-bit elements: lane 8 m + r gives the 16-byte aligned address of row r of matrix m, in shared memory.
// out[m] = elements 2q and 2q + 1 of row g of matrix m; the transposed form reads column g.
__device__ __forceinline__ void load_matrix_x4(uint32_t (&out)[4], const void* row) {
  const uint32_t from = uint32_t(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(from)
               : "memory");
}
__device__ __forceinline__ void load_matrix_x4_transposed(uint32_t (&out)[4], const void* row) {
  const uint32_t from = uint32_t(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(from)
               : "memory");
}

// c[16, 8] += a[16, 16] * b[16, 8], bf16 operands, float32 sums. A register has two bf16, the lower column (b: row) in the low half:
// a: (g, 2q) (g + 8, 2q) (g, 2q + 8) (g + 8, 2q + 8); b: (2q, g) (2q + 8, g); c: (g, 2q) (g, 2q + 1) (g + 8, 2q) (g + 8, 2q + 1).
__device__ __forceinline__ void mma_bf16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// --- programmatic dependent launch; no instruction before sm_90, where kernels of a stream do not overlap

// Waits for earlier kernels of the stream. Every kernel calls it before it first reads what an earlier kernel wrote, and before it
// first writes.
__device__ __forceinline__ void grid_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// Called after grid_wait(): from then on the next kernel of the stream may start its own prologue.
__device__ __forceinline__ void grid_launch_dependents() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// --- single-thread helpers

// Converts two floats to bf16, rounded to nearest even; `low` is in the low half.
__device__ __forceinline__ uint32_t to_bf16x2(float low, float high) {
  uint32_t v;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(v) : "f"(high), "f"(low));
  return v;
}
__device__ __forceinline__ uint16_t to_bf16(float v) { return uint16_t(to_bf16x2(v, 0.0f)); }
__device__ __forceinline__ float from_bf16(uint16_t v) { return __uint_as_float(uint32_t(v) << 16); }
// Multiplies and adds two pairs of bf16, low and high halves for themselves; each result is rounded once, and may be subnormal.
__device__ __forceinline__ uint32_t fma_bf16x2(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t v;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(v) : "r"(a), "r"(b), "r"(c));
  return v;
}
// Converts two floats to float16, as to_bf16x2() does.
__device__ __forceinline__ uint32_t to_f16x2(float low, float high) {
  uint32_t v;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(v) : "f"(high), "f"(low));
  return v;
}
__device__ __forceinline__ float from_f16(uint16_t v) {
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(v));
  return f;
}
__device__ __forceinline__ float accurate_exp(float v) {
  return expf(v);
}  // 1 ulp, where a host's own is off by half; exp(0) = 1
__device__ __forceinline__ float accurate_erf(float v) { return erff(v); }  // 2 ulp
__device__ __forceinline__ float fast_exp(float v) { return __expf(v); }    // about 2 ulp + 1e-7 |v|; exp(-inf) = 0

__device__ __forceinline__ int count_bits(uint32_t v) { return __popc(v); }
__device__ __forceinline__ int lowest_bit(uint32_t v) { return __ffs(int(v)) - 1; }  // v != 0
__device__ __forceinline__ uint32_t float_bits(float v) { return __float_as_uint(v); }
__device__ __forceinline__ float bits_float(uint32_t v) { return __uint_as_float(v); }
__device__ __forceinline__ void atomic_or(uint32_t* p, uint32_t bits) { atomicOr(p, bits); }  // relaxed
__device__ __forceinline__ void atomic_min(uint32_t* p, uint32_t v) { atomicMin(p, v); }
__device__ __forceinline__ void atomic_add(uint32_t* p, uint32_t v) { atomicAdd(p, v); }
__device__ __forceinline__ uint32_t atomic_fetch_add(uint32_t* p, uint32_t v) { return atomicAdd(p, v); }  // the old value

}  // namespace lynx_rt::cuda
