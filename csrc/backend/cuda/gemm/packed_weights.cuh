// The weights of a product's job (packed.h): a warp loads them ahead, and has them as bf16 fragments when they are multiplied. Blocks
// of columns are numbered from the warp's first. kDepth: blocks of columns in flight. kInterleaved: the row blocks share an array, as
// gate and up do.
#pragma once
#include <cstdint>
#include <type_traits>

#include "backend/cuda/gemm/packed.h"
#include "backend/cuda/runtime/ptx.cuh"

namespace lynx_rt::cuda {

inline constexpr int kStepBytes = 512;  // one fragment of 16 x 16 weights

// Weights that are bf16.
template <int kRowBlocks, int kDepth, bool kInterleaved>
class PlainWeights {
 public:
  static constexpr int kArrays = kInterleaved ? 1 : kRowBlocks;
  struct Rows {
    const unsigned char* at[kArrays];
  };

  // Returns blocks `first` and `second` of a matrix's rows, which has `blocks` blocks of 32 columns; interleaved blocks have the same number.
  __device__ static Rows rows(const void* matrix, const PackedForm&, int /*num_rows*/, int blocks, int first, int second) {
    const unsigned char* begin = static_cast<const unsigned char*>(matrix);
    const int64_t bytes = int64_t(blocks) * kBlockBytes;
    Rows rows;
    LYNX_UNROLL
    for (int i = 0; i < kArrays; ++i) rows.at[i] = begin + (i == 0 ? first : second) * bytes;
    return rows;
  }

  __device__ void start(const Rows& rows, int first_block) {
    LYNX_UNROLL
    for (int i = 0; i < kArrays; ++i) weights_[i] = rows.at[i] + int64_t(first_block) * kBlockBytes + lane_id() * 16;
  }
  // Loads a block of columns into place s, counted from those that advance() has passed. Blocks are loaded one after the other.
  __device__ void load(int s, int block) {
    LYNX_UNROLL
    for (int step = 0; step < 2; ++step) {
      LYNX_UNROLL
      for (int i = 0; i < kRowBlocks; ++i)
        fragments_[s][i][step] =
            load_once(weights_[i % kArrays] + block * kBlockBytes + step * kStride + i / kArrays * kStepBytes);
    }
  }
  __device__ void advance() {
    LYNX_UNROLL
    for (int i = 0; i < kArrays; ++i) weights_[i] += kDepth * kBlockBytes;
  }
  // Calls multiply(first, fragments[row blocks from the first on][step]) until all row blocks of the block in place s are done.
  template <class Multiply>
  __device__ void use(int s, Multiply multiply) const {
    multiply(std::integral_constant<int, 0>(), fragments_[s]);
  }

 private:
  static constexpr int kStride = kInterleaved ? kRowBlocks * kStepBytes : kStepBytes;  // from one step to the next
  static constexpr int kBlockBytes = 2 * kStride;                                      // bytes of 32 columns

  const unsigned char* weights_[kArrays];    // weights of the current block of columns
  Words4 fragments_[kDepth][kRowBlocks][2];  // weights being loaded: the next kDepth blocks of columns
};

__device__ __forceinline__ uint32_t in_both_halves(uint32_t v) { return v * 0x10001u; }  // v < 2^16
// Returns the bf16 of an exponent byte, 2^(e - 127).
__device__ __forceinline__ uint32_t exponent_bf16(uint32_t e) { return e == 0 ? 0x40u : e << 7; }

// Quantised weights: codes of kBits bits, times scales. A value is bf16(code * scale), the product rounded first to float16 where the
// scale is one: what the decoder of checkpoints returns (checkpoint/dequantizer.h).
// Codes of 4 bits become bf16 by placing their bits, and every product of such a code (at most 5 bits) and a bf16 scale is exact before
// it is rounded once; so fma on two values at a time gives these bits. Other products are made in float32.
template <int kBits, int kRowBlocks, int kDepth, bool kInterleaved>
class CodeWeights {
 public:
  // Addresses of the first block, and the distances to the second one, which take half the registers of addresses.
  struct Rows {
    const unsigned char *codes, *scales, *zeros;
    int next_codes, next_scales;
    PackedForm form;
  };

  __device__ static Rows rows(const void* matrix, const PackedForm& form, int num_rows, int blocks, int first, int second) {
    const int size = scale_bytes(form.scale_type), groups = (blocks + form.group - 1) / form.group;
    const int64_t row_blocks = (num_rows + kBlockRows - 1) / kBlockRows;
    const int64_t code_bytes = int64_t(blocks) * kBlockBytes, scales = int64_t(groups) * kGroupRows;  // of a block of rows
    const unsigned char* codes_at = static_cast<const unsigned char*>(matrix);
    const unsigned char* scales_at = codes_at + row_blocks * code_bytes;
    const unsigned char* zeros_at = scales_at + row_blocks * scales * size;
    return {codes_at + first * code_bytes,      scales_at + first * scales * size, zeros_at + first * scales,
            int((second - first) * code_bytes), int((second - first) * scales),    form};
  }

  __device__ void start(const Rows& rows, int first_block) {
    from_ = rows;
    from_.codes += int64_t(first_block) * kBlockBytes + lane_id() * kLaneBytes;
    scale_ = first_block / from_.form.group * kGroupRows + lane_id() / 4 * 2;
    left_ = from_.form.group - first_block % from_.form.group;
  }
  __device__ void load(int s, int block) {
    LYNX_UNROLL
    for (int i = 0; i < kRowBlocks; ++i) {
      const unsigned char* codes = from_.codes + block * kBlockBytes + i * (kInterleaved ? kCodeBytes : from_.next_codes);
      if constexpr (kBits == 4) {
        codes_[s][i] = load_once_8(codes);
      } else {
        codes_[s][i] = load_once(codes);
      }
      const int at = scale_ + i * (kInterleaved ? kBlockRows : from_.next_scales);
      scales_[s][i] = load_scales(from_.scales, at);
      if (kBits == 4 && from_.form.zeros) scales_[s][i].y = *reinterpret_cast<const uint16_t*>(from_.zeros + at);
    }
    if (--left_ > 0) return;
    scale_ += kGroupRows;
    left_ = from_.form.group;
  }
  __device__ void advance() { from_.codes += kDepth * kBlockBytes; }
  template <class Multiply>
  __device__ void use(int s, Multiply multiply) const {
    // One row block after the other: all fragments together would take too many registers.
    Words4 fragments[1][2];
    unpack(codes_[s][0], scales_[s][0], fragments[0]);
    multiply(std::integral_constant<int, 0>(), fragments);
    if constexpr (kRowBlocks == 2) {
      unpack(codes_[s][1], scales_[s][1], fragments[0]);
      multiply(std::integral_constant<int, 1>(), fragments);
    }
  }

 private:
  static constexpr int kParts = kInterleaved ? kRowBlocks : 1;
  static constexpr int kGroupRows = kParts * kBlockRows;  // scales from one group of columns to the next
  static constexpr int kCodeBytes = 64 * kBits, kLaneBytes = kCodeBytes / 32, kBlockBytes = kParts * kCodeBytes;
  static constexpr uint32_t kMinusZeros = 0x80008000u;

  __device__ static int scale_bytes(ScaleType type) { return type == ScaleType::kF32 ? 4 : type == ScaleType::kExponent ? 1 : 2; }
  // Returns the scales of the lane's two rows: two words, or two halves or two bytes of the first one. With 4 bits, whose scales are
  // not float32, the second word has the zero points as two bytes, 8 where there are none.
  __device__ Words2 load_scales(const unsigned char* scales, int at) const {
    const ScaleType type = from_.form.scale_type;
    if (kBits == 8 && type == ScaleType::kF32) return *reinterpret_cast<const Words2*>(scales + int64_t(at) * 4);
    if (kBits == 4 && type == ScaleType::kExponent) return {*reinterpret_cast<const uint16_t*>(scales + at), 0};
    return {*reinterpret_cast<const uint32_t*>(scales + int64_t(at) * 2), 0x0808};
  }
  // Returns the scale of one of the two rows; not of exponents.
  __device__ float scale_of(const Words2& scales, int row) const {
    if (kBits == 8 && from_.form.scale_type == ScaleType::kF32) return bits_float(row ? scales.y : scales.x);
    if (kBits == 8 && from_.form.scale_type == ScaleType::kBF16) return bits_float(row ? scales.x & 0xffff0000u : scales.x << 16);
    return from_f16(uint16_t(row ? scales.x >> 16 : scales.x));
  }
  // Returns byte - 128: the bits of 2^23 + byte, from which 2^23 + 128 is taken.
  __device__ static float from_byte(uint32_t byte) { return bits_float(0x4b000000u | byte) - 8388736.0f; }
  // Returns the value of a code of FP8. Its bits as float16 are 2^-8 times that, but for NaN.
  __device__ static float from_e4m3(uint32_t code) {
    if ((code & 127) == 127) return bits_float(0x7fc00000u);
    return from_f16(uint16_t((code & 128) << 8 | (code & 127) << 7)) * 256.0f;
  }
  __device__ uint32_t product(float low, float high, float scale) const {
    low *= scale, high *= scale;
    if (kBits == 4 || from_.form.scale_type == ScaleType::kF16) {
      const uint32_t halves = to_f16x2(low, high);
      low = from_f16(uint16_t(halves)), high = from_f16(uint16_t(halves >> 16));
    }
    return to_bf16x2(low, high);
  }

  __device__ void unpack(const Words2& codes, const Words2& scales, Words4 (&out)[2]) const {
    uint32_t words[2][4];
    if (from_.form.code == BlockCode::kGroupedMxfp4) {
      // Bits of e2m1 become sign, exponent and mantissa of 2^-126 times their value.
      constexpr uint32_t kFactor = 0x7e807e80u;  // 2^126
      const uint32_t scale[2] = {in_both_halves(exponent_bf16(scales.x & 255)), in_both_halves(exponent_bf16(scales.x >> 8))};
      LYNX_UNROLL
      for (int step = 0; step < 2; ++step) {
        const uint32_t w = step ? codes.y : codes.x;
        LYNX_UNROLL
        for (int r = 0; r < 4; ++r) {
          const uint32_t sign = w << (12 - 4 * r), rest = r < 2 ? w << (6 - 4 * r) : w >> (4 * r - 6);
          const uint32_t value = fma_bf16x2((sign & 0x80008000u) | (rest & 0x01c001c0u), kFactor, kMinusZeros);
          words[step][r] = fma_bf16x2(value, scale[r % 2], kMinusZeros);
        }
      }
    } else {
      // A code c becomes 128 + c, from which 128 + zero is taken.
      const uint32_t offset[2] = {in_both_halves(0xc300u + (scales.y & 255)), in_both_halves(0xc300u + (scales.y >> 8))};
      const bool exact = from_.form.scale_type == ScaleType::kBF16;
      LYNX_UNROLL
      for (int step = 0; step < 2; ++step) {
        LYNX_UNROLL
        for (int r = 0; r < 4; ++r) {
          const uint32_t code = ((step ? codes.y : codes.x) >> (4 * r) & 0x000f000fu) | 0x43004300u;
          words[step][r] = fma_bf16x2(code, 0x3f803f80u, offset[r % 2]);
        }
      }
      if (exact) {
        const uint32_t scale[2] = {in_both_halves(scales.x & 0xffffu), in_both_halves(scales.x >> 16)};
        LYNX_UNROLL
        for (int step = 0; step < 2; ++step) {
          LYNX_UNROLL
          for (int r = 0; r < 4; ++r) words[step][r] = fma_bf16x2(words[step][r], scale[r % 2], kMinusZeros);
        }
      } else {
        const float scale[2] = {scale_of(scales, 0), scale_of(scales, 1)};
        LYNX_UNROLL
        for (int step = 0; step < 2; ++step) {
          LYNX_UNROLL
          for (int r = 0; r < 4; ++r) {
            const uint32_t w = words[step][r];
            words[step][r] = product(bits_float(w << 16), bits_float(w & 0xffff0000u), scale[r % 2]);
          }
        }
      }
    }
    LYNX_UNROLL
    for (int step = 0; step < 2; ++step) out[step] = {words[step][0], words[step][1], words[step][2], words[step][3]};
  }
  __device__ void unpack(const Words4& codes, const Words2& scales, Words4 (&out)[2]) const {
    const uint32_t in[4] = {codes.x, codes.y, codes.z, codes.w};
    const bool fp8 = from_.form.code == BlockCode::kGroupedFp8;
    const float scale[2] = {scale_of(scales, 0), scale_of(scales, 1)};
    LYNX_UNROLL
    for (int step = 0; step < 2; ++step) {
      uint32_t words[4];
      LYNX_UNROLL
      for (int r = 0; r < 4; ++r) {
        const uint32_t two = in[2 * step + r / 2] >> (16 * (r % 2));
        words[r] = fp8 ? product(from_e4m3(two & 255), from_e4m3(two >> 8 & 255), scale[r % 2])
                       : product(from_byte(two & 255), from_byte(two >> 8 & 255), scale[r % 2]);
      }
      out[step] = {words[0], words[1], words[2], words[3]};
    }
  }

  using Codes = std::conditional_t<kBits == 4, Words2, Words4>;

  Rows from_;         // `codes` of the current block of columns
  int scale_, left_;  // place of the lane's scales in the group being loaded, and the blocks of it that are left
  Codes codes_[kDepth][kRowBlocks];
  Words2 scales_[kDepth][kRowBlocks];
};

}  // namespace lynx_rt::cuda
