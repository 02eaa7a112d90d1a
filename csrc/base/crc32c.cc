#include "base/crc32c.h"

#include <array>
#include <cstring>

#include "base/cpu_features.h"

namespace lynx_rt {

namespace {

// States are the register of the definition: complemented before the first byte and after the last, and reflected, so that the highest
// power of x is bit 0.

using Table = std::array<std::array<uint32_t, 256>, 8>;

// Entry [k][b] is the state after byte b and k zero bytes, from state 0.
constexpr Table make_table() {
  Table table{};
  for (uint32_t b = 0; b < 256; ++b) {
    uint32_t state = b;
    for (int bit = 0; bit < 8; ++bit) state = state >> 1 ^ (state & 1 ? 0x82f63b78u : 0);
    table[0][b] = state;
  }
  for (size_t k = 1; k < 8; ++k)
    for (uint32_t b = 0; b < 256; ++b) table[k][b] = table[k - 1][b] >> 8 ^ table[0][table[k - 1][b] & 255];
  return table;
}
constexpr Table kTable = make_table();

uint32_t add_by_table(const uint8_t* p, int64_t bytes, uint32_t state) {
  for (; bytes >= 8; bytes -= 8, p += 8) {
    uint8_t b[8];
    std::memcpy(b, p, 8);
    for (int i = 0; i < 4; ++i) b[i] ^= uint8_t(state >> 8 * i);
    state = 0;
    for (size_t i = 0; i < 8; ++i) state ^= kTable[7 - i][b[i]];
  }
  for (; bytes > 0; --bytes, ++p) state = state >> 8 ^ kTable[0][(state ^ *p) & 255];
  return state;
}

#if defined(__x86_64__) || defined(__aarch64__)

// An instruction takes three cycles and one starts per cycle, so three stretches of this length are computed side by side.
constexpr int64_t kStretch = 4096;

// The effect of kStretch zero bytes on a state: the XOR of one entry per byte of it, since states are linear in their bits.
struct Skip {
  std::array<std::array<uint32_t, 256>, 4> table{};
  Skip() {
    const std::array<uint8_t, kStretch> zeros{};
    for (size_t k = 0; k < 4; ++k) {
      for (uint32_t bit = 1; bit < 256; bit *= 2) table[k][bit] = add_by_table(zeros.data(), kStretch, bit << 8 * k);
      for (uint32_t b = 1; b < 256; ++b) table[k][b] = table[k][b & (b - 1)] ^ table[k][b & (~b + 1)];
    }
  }
  uint32_t operator()(uint32_t state) const {
    return table[0][state & 255] ^ table[1][state >> 8 & 255] ^ table[2][state >> 16 & 255] ^ table[3][state >> 24];
  }
};

#if defined(__x86_64__)
#define LYNX_RT_CRC32C __attribute__((target("sse4.2")))
LYNX_RT_CRC32C inline uint32_t add8(uint32_t state, uint64_t eight) { return uint32_t(__builtin_ia32_crc32di(state, eight)); }
LYNX_RT_CRC32C inline uint32_t add1(uint32_t state, uint8_t one) { return __builtin_ia32_crc32qi(state, one); }
#else
#define LYNX_RT_CRC32C
inline uint32_t add8(uint32_t state, uint64_t eight) {
  __asm__(".arch_extension crc\n\tcrc32cx %w0, %w0, %x1" : "+r"(state) : "r"(eight));
  return state;
}
inline uint32_t add1(uint32_t state, uint8_t one) {
  __asm__(".arch_extension crc\n\tcrc32cb %w0, %w0, %w1" : "+r"(state) : "r"(uint32_t(one)));
  return state;
}
#endif

inline uint64_t load8(const uint8_t* p) {
  uint64_t value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

LYNX_RT_CRC32C uint32_t add_by_instruction(const uint8_t* p, int64_t bytes, uint32_t state) {
  static const Skip skip;
  for (; bytes >= 3 * kStretch; bytes -= 3 * kStretch, p += 3 * kStretch) {
    uint32_t second = 0, third = 0;
    for (int64_t i = 0; i < kStretch; i += 8) {
      state = add8(state, load8(p + i));
      second = add8(second, load8(p + kStretch + i));
      third = add8(third, load8(p + 2 * kStretch + i));
    }
    state = skip(skip(state) ^ second) ^ third;
  }
  for (; bytes >= 8; bytes -= 8, p += 8) state = add8(state, load8(p));
  for (; bytes > 0; --bytes, ++p) state = add1(state, *p);
  return state;
}

#else

uint32_t add_by_instruction(const uint8_t* p, int64_t bytes, uint32_t state) { return add_by_table(p, bytes, state); }

#endif

}  // namespace

uint32_t crc32c_by_table(const void* data, int64_t bytes, uint32_t crc) {
  return ~add_by_table(static_cast<const uint8_t*>(data), bytes, ~crc);
}

uint32_t crc32c(const void* data, int64_t bytes, uint32_t crc) {
  static const bool by_instruction = has_crc32c();
  if (!by_instruction) return crc32c_by_table(data, bytes, crc);
  return ~add_by_instruction(static_cast<const uint8_t*>(data), bytes, ~crc);
}

}  // namespace lynx_rt
