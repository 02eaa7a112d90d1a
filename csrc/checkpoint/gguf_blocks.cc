#include "checkpoint/gguf_blocks.h"

#include <cmath>
#include <cstring>

#include "base/types.h"

namespace lynx_rt {

namespace {

float half_at(const uint8_t* p) {
  uint16_t bits;
  std::memcpy(&bits, p, sizeof bits);
  return f16_to_f32(bits);
}

void decode_f32(const uint8_t* from, int64_t values, float* out) { std::memcpy(out, from, size_t(values) * 4); }

void decode_f16(const uint8_t* from, int64_t values, float* out) {
  for (int64_t i = 0; i < values; ++i) out[i] = half_at(from + 2 * i);
}

void decode_bf16(const uint8_t* from, int64_t values, float* out) {
  for (int64_t i = 0; i < values; ++i) {
    uint16_t bits;
    std::memcpy(&bits, from + 2 * i, sizeof bits);
    out[i] = bf16_to_f32(bits);
  }
}

// Calls block(begin of the block, its values) for each block.
template <int64_t kValues, int64_t kBytes, class Block>
void for_blocks(const uint8_t* from, int64_t values, float* out, Block block) {
  for (int64_t i = 0; i < values; i += kValues, from += kBytes) block(from, out + i);
}

// Codes of 4 bits: byte j of 16 has value j in its low half and value j + 16 in its high half.
template <class Value>
void for_nibbles(const uint8_t* bytes, float* out, Value value) {
  for (int j = 0; j < 16; ++j) {
    out[j] = value(bytes[j] & 15);
    out[j + 16] = value(bytes[j] >> 4);
  }
}

void decode_q8_0(const uint8_t* from, int64_t values, float* out) {
  for_blocks<32, 34>(from, values, out, [](const uint8_t* b, float* x) {
    const float d = half_at(b);
    for (int j = 0; j < 32; ++j) x[j] = float(int8_t(b[2 + j])) * d;
  });
}

void decode_q4_0(const uint8_t* from, int64_t values, float* out) {
  for_blocks<32, 18>(from, values, out, [](const uint8_t* b, float* x) {
    const float d = half_at(b);
    for_nibbles(b + 2, x, [d](int code) { return float(code - 8) * d; });
  });
}

// The scale and the minimum of a sub-block of Q4_K and Q5_K, 6 bits each, which lie in 12 bytes for all 8.
struct SubBlock {
  int scale, least;

  SubBlock(const uint8_t* s, int i) {
    if (i < 4) {
      scale = s[i] & 63, least = s[i + 4] & 63;
    } else {
      scale = (s[i + 4] & 15) | (s[i - 4] >> 6) << 4, least = (s[i + 4] >> 4) | (s[i] >> 6) << 4;
    }
  }
};

// 8 sub-blocks of 32. Bytes 32 g .. 32 g + 31 of the codes have sub-block 2 g in their low halves and 2 g + 1 in their high halves;
// Q5_K has the fifth bits of sub-block i as bits i of 32 bytes, at `high`, null for Q4_K.
void decode_k(const uint8_t* b, const uint8_t* high, const uint8_t* codes, float* x) {
  const float d = half_at(b), least = half_at(b + 2);
  for (int i = 0; i < 8; ++i) {
    const SubBlock sub(b + 4, i);
    const float by = d * float(sub.scale), minus = least * float(sub.least);
    for (int j = 0; j < 32; ++j) {
      int code = codes[i / 2 * 32 + j] >> 4 * (i % 2) & 15;
      if (high) code |= (high[j] >> i & 1) << 4;
      x[32 * i + j] = by * float(code) - minus;
    }
  }
}

void decode_q4_k(const uint8_t* from, int64_t values, float* out) {
  for_blocks<256, 144>(from, values, out, [](const uint8_t* b, float* x) { decode_k(b, nullptr, b + 16, x); });
}

void decode_q5_k(const uint8_t* from, int64_t values, float* out) {
  for_blocks<256, 176>(from, values, out, [](const uint8_t* b, float* x) { decode_k(b, b + 16, b + 48, x); });
}

// 128 bytes of low halves, 64 of high pairs of bits, 16 scales of 16 values each, d. Each half of the block has its own 64 and 32
// bytes: value l has its low bits in byte l % 64 and its high bits in byte l % 32.
void decode_q6_k(const uint8_t* from, int64_t values, float* out) {
  for_blocks<256, 210>(from, values, out, [](const uint8_t* b, float* x) {
    const float d = half_at(b + 208);
    for (int i = 0; i < 256; ++i) {
      const int half = i / 128, l = i % 128;
      const int low = b[half * 64 + l % 64] >> 4 * (l / 64) & 15, high = b[128 + half * 32 + l % 32] >> 2 * (l / 32) & 3;
      x[i] = d * float(int8_t(b[192 + i / 16])) * float((low | high << 4) - 32);
    }
  });
}

// E2M1 (OCP Microscaling Formats 1.0), doubled, so that the values are integers.
constexpr float kE2m1Doubled[] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

void decode_mxfp4(const uint8_t* from, int64_t values, float* out) {
  for_blocks<32, 17>(from, values, out, [](const uint8_t* b, float* x) {
    const float d = std::ldexp(1.0f, int(b[0]) - 128);  // half of 2^(e - 127), because the values are doubled
    for_nibbles(b + 1, x, [d](int code) { return kE2m1Doubled[code] * d; });
  });
}

// The values of IQ4's codes (kvalues_iq4nl of ggml-common.h).
constexpr float kIq4[] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

void decode_iq4_nl(const uint8_t* from, int64_t values, float* out) {
  for_blocks<32, 18>(from, values, out, [](const uint8_t* b, float* x) {
    const float d = half_at(b);
    for_nibbles(b + 2, x, [d](int code) { return d * kIq4[code]; });
  });
}

// 8 sub-blocks of 32, whose scales of 6 bits are in two parts: the low 4 bits in 4 bytes, the high 2 in a word of 16 bits.
void decode_iq4_xs(const uint8_t* from, int64_t values, float* out) {
  for_blocks<256, 136>(from, values, out, [](const uint8_t* b, float* x) {
    const float d = half_at(b);
    const int high = b[2] | b[3] << 8;
    for (int i = 0; i < 8; ++i) {
      const int scale = (b[4 + i / 2] >> 4 * (i % 2) & 15) | (high >> 2 * i & 3) << 4;
      const float by = d * float(scale - 32);
      for_nibbles(b + 8 + 16 * i, x + 32 * i, [by](int code) { return by * kIq4[code]; });
    }
  });
}

struct Decoder {
  std::string_view name;
  DecodeBlocks decode;
};
constexpr Decoder kDecoders[] = {
    {"F32", decode_f32},     {"F16", decode_f16},       {"BF16", decode_bf16},     {"Q8_0", decode_q8_0},
    {"Q4_0", decode_q4_0},   {"Q4_K", decode_q4_k},     {"Q5_K", decode_q5_k},     {"Q6_K", decode_q6_k},
    {"MXFP4", decode_mxfp4}, {"IQ4_NL", decode_iq4_nl}, {"IQ4_XS", decode_iq4_xs},
};

}  // namespace

DecodeBlocks decoder_of(const GgufType& type) {
  for (const Decoder& d : kDecoders)
    if (d.name == type.name) return d.decode;
  return nullptr;
}

std::optional<BlockRows> rows_in_blocks(const GgufType& type, const TensorInfo& info) {
  for (const BlockCode code : {BlockCode::kQ8_0, BlockCode::kQ4_0, BlockCode::kQ4_K, BlockCode::kQ5_K, BlockCode::kQ6_K,
                               BlockCode::kIQ4_NL, BlockCode::kIQ4_XS, BlockCode::kMxfp4})
    if (type.name == block_code_name(code))
      return BlockRows{.code = code, .data = info.data, .row_bytes = info.shape.back() / type.values * type.bytes};
  return std::nullopt;
}

}  // namespace lynx_rt
