// Floats as integers of the same order, for selection by comparing and splitting bits.
#pragma once
#include "backend/cuda/runtime/ptx.cuh"

namespace lynx_rt::cuda {

// Returns the key of a value: keys have the order of the values. Both zeros have one key, and no number has key 0.
__device__ inline uint32_t to_key(float value) {
  const uint32_t bits = value == 0 ? 0 : float_bits(value);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}
__device__ inline float from_key(uint32_t key) { return bits_float(key >> 31 ? key ^ 0x80000000u : ~key); }

}  // namespace lynx_rt::cuda
