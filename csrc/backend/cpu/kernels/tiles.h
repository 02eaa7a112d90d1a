// The instructions of AMX's tile registers as functions (Intel Architecture Instruction Set Extensions Reference, chapter 3). They
// are in assembly because the intrinsics of gcc 12 do not tell the compiler that a load, or ldtilecfg, reads memory.
#pragma once
#include <cstdint>

namespace {

// Eight nops that follow every load and product. Where two hardware threads of a core use tiles at once, tile instructions in close
// succession cost a third more than those with others between them; where one thread does, the nops finish before the tile unit.
#define LYNX_RT_SPACE "\n\t.rept 8\n\tnop\n\t.endr"

// The operand of ldtilecfg.
struct TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  void set(int tile, int64_t num_rows, int64_t bytes) {
    rows[tile] = uint8_t(num_rows);
    row_bytes[tile] = uint16_t(bytes);
  }
  void load() const { asm volatile("ldtilecfg %0" ::"m"(*this)); }
};

inline void release_tiles() { asm volatile("tilerelease"); }

template <int T>
inline void load_tile(const void* p, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" LYNX_RT_SPACE ::"r"(p), "r"(stride), "i"(T) : "memory");
}

template <int T>
inline void store_tile(void* p, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(p), "r"(stride), "i"(T) : "memory");
}

template <int T>
inline void zero_tile() {
  asm volatile("tilezero %%tmm%c0" ::"i"(T));
}

}  // namespace
