// The common part of the products with weights in blocks (blocks.h) of all instruction sets.
#pragma once
#include "backend/cpu/kernels/blocks_decode_inl.h"
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

template <class V, BlockCode Code>
void block_values(const BlockRows& w, int64_t row, int64_t k, float* out) {
  Decoded part;
  for (int64_t begin = 0; begin < k; begin += kChunk) {
    const int64_t columns = k - begin < kChunk ? k - begin : kChunk;
    decode<V, Code>(w, row, begin, columns, part);
    values<Code>(part, columns, out + begin);
  }
}

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

// A code as a type, for functions that are compiled for each code.
template <BlockCode Code>
struct CodeOf {
  static constexpr BlockCode value = Code;
};

// Calls run(CodeOf<code>()).
template <class Run>
inline void with_code(BlockCode code, const Run& run) {
  switch (code) {
    case BlockCode::kQ8_0: return run(CodeOf<BlockCode::kQ8_0>());
    case BlockCode::kQ4_0: return run(CodeOf<BlockCode::kQ4_0>());
    case BlockCode::kQ4_K: return run(CodeOf<BlockCode::kQ4_K>());
    case BlockCode::kQ5_K: return run(CodeOf<BlockCode::kQ5_K>());
    case BlockCode::kQ6_K: return run(CodeOf<BlockCode::kQ6_K>());
    case BlockCode::kIQ4_NL: return run(CodeOf<BlockCode::kIQ4_NL>());
    case BlockCode::kIQ4_XS: return run(CodeOf<BlockCode::kIQ4_XS>());
    case BlockCode::kMxfp4: return run(CodeOf<BlockCode::kMxfp4>());
    case BlockCode::kGroupedMxfp4: return run(CodeOf<BlockCode::kGroupedMxfp4>());
    case BlockCode::kGroupedInt4: return run(CodeOf<BlockCode::kGroupedInt4>());
    case BlockCode::kGroupedInt8: return run(CodeOf<BlockCode::kGroupedInt8>());
  }
}

template <class V>
void values_of(const BlockRows& w, int64_t row, int64_t k, float* out) {
  with_code(w.code, [&](auto code) { block_values<V, code.value>(w, row, k, out); });
}

}  // namespace
