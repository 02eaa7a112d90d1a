// The common part of the products with weights in blocks (blocks.h) of all instruction sets.
#pragma once
#include "backend/cpu/kernels/blocks_decode_inl.h"
#include "backend/cpu/kernels/blocks_values_inl.h"
#include "backend/cpu/kernels/kernels.h"
#include "backend/cpu/kernels/quant_scale_inl.h"

namespace {

// The packed rows of x.
struct BlockX {
  const char* data;
  int64_t stride, groups;

  const char* bytes(int64_t j, int64_t r) const { return data + j * stride + r * kRun; }
  float scale(int64_t j, int64_t g) const { return Blocks::x_scales(data + j * stride, groups)[g]; }
  const int16_t* sums(int64_t j, int64_t r) const { return Blocks::x_sums(data + j * stride, groups) + 2 * r; }
  BlockX from(int64_t j) const { return {data + j * stride, stride, groups}; }
};

// Packs columns [begin, begin + n) of m rows, in plain operations, so that all instruction sets agree.
inline void pack_blocks(const float* const* x, int64_t m, int64_t begin, int64_t n, void* out, int64_t x_stride) {
  const int64_t groups = Blocks::x_groups(x_stride);
  for (int64_t j = 0; j < m; ++j) {
    char* row = static_cast<char*>(out) + j * x_stride;
    float* scales = const_cast<float*>(Blocks::x_scales(row, groups));
    int16_t* sums = const_cast<int16_t*>(Blocks::x_sums(row, groups));
    for (int64_t p = 0; p < n; p += kGroup) {
      const int64_t g = (begin + p) / kGroup;
      int8_t q[kGroup];
      scales[g] = quantize_x(x[j] + p, n - p, q);
      std::memcpy(row + g * kGroup, q, sizeof q);
      for (int64_t h = 0; h < kGroup / 16; ++h) {
        int16_t sum = 0;
        for (int64_t i = 0; i < 16; ++i) sum = int16_t(sum + q[h * 16 + i]);
        sums[g * kGroup / 16 + h] = sum;
      }
    }
  }
}

}  // namespace
