#include "base/types.h"

namespace lynx_rt {

float f16_to_f32(uint16_t v) {
  uint32_t sign = uint32_t(v & 0x8000) << 16, exp = (v >> 10) & 31, man = v & 0x3ff;
  if (exp == 31) return std::bit_cast<float>(sign | 0x7f800000u | (man << 13));
  if (exp == 0) {  // zero or subnormal: man * 2^-24 is exact in f32
    float m = float(man) * 0x1p-24f;
    return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(m));
  }
  return std::bit_cast<float>(sign | ((exp + 112) << 23) | (man << 13));
}

uint16_t f32_to_f16(float f) {
  uint32_t u = std::bit_cast<uint32_t>(f), sign = (u >> 16) & 0x8000, mag = u & 0x7fffffff;
  if (mag > 0x7f800000u) return uint16_t(sign | 0x7e00);
  if (mag >= 0x477ff000u) return uint16_t(sign | 0x7c00);  // rounds to infinity
  if (mag < 0x38800000u) {                                 // subnormal or zero: the addition rounds at 2^-24
    float m = std::bit_cast<float>(mag) + 0.5f;
    return uint16_t(sign | (std::bit_cast<uint32_t>(m) - 0x3f000000u));
  }
  uint32_t r = mag + 0xc8000fffu + ((mag >> 13) & 1);  // rebias by -112 << 23, round half to even
  return uint16_t(sign | (r >> 13));
}

}  // namespace lynx_rt
