// Products with weights in blocks with AVX-512 VNNI. Eight rows are decoded in registers of 256 bits, sixteen multiplied in one of 512.
#include "backend/cpu/kernels/blocks_avx2_inl.h"

namespace {

struct Zmm {
  using Words = __m512i;
  using Floats = __m512;
  static constexpr int kRows = 16;

  static Words zero() { return _mm512_setzero_si512(); }
  static Words load(const void* p) { return _mm512_loadu_si512(p); }
  static Words all(int32_t v) { return _mm512_set1_epi32(v); }
  static Words all16(int v) { return _mm512_set1_epi16(short(v)); }
  static Words plus(Words a, Words b) { return _mm512_add_epi32(a, b); }
  static Words minus(Words a, Words b) { return _mm512_sub_epi32(a, b); }
  static Words madd16(Words a, Words b) { return _mm512_madd_epi16(a, b); }
  static Words times_high(Words a, Words step) { return _mm512_mullo_epi32(a, _mm512_srai_epi32(step, 16)); }
  static Floats floats(Words v) { return _mm512_cvtepi32_ps(v); }
  static Floats zero_floats() { return _mm512_setzero_ps(); }
  static Floats load_floats(const float* p) { return _mm512_load_ps(p); }
  static void store_floats(float* p, Floats v) { _mm512_store_ps(p, v); }
  static Floats all_floats(float v) { return _mm512_set1_ps(v); }
  static Floats times(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
  static Floats fmadd(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
  static Floats fnmadd(Floats a, Floats b, Floats c) { return _mm512_fnmadd_ps(a, b, c); }
  static Words now(Words v) {
    asm("" : "+v"(v));
    return v;
  }
};

struct Dot : WideDot<Zmm> {
  static constexpr int kMost = 10;
  static __m512i add(__m512i sum, __m512i u, __m512i q) { return _mm512_dpbusd_epi32(sum, u, q); }
};

}  // namespace

namespace lynx_rt::cpu {
const BlockKernels kAvx512VnniBlockKernels = {gemm<Avx2Blocks<Dot>>, pack_blocks, values_of<Avx2Blocks<Dot>>,
                                              decode_rows<Avx2Blocks<Dot>>};
}
