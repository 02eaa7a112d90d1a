// Quantised products in plain code, for any CPU.
#include "backend/cpu/kernels/kernels.h"
#include "backend/cpu/kernels/quant_inl.h"

namespace {

template <int Bits>
void gemm(const void* weights, int64_t w_stride, int64_t n, const void* rows, int64_t x_stride, int64_t m, int64_t k, float* out,
          int64_t out_stride, bool accumulate, const void*) {
  const QuantRows x{static_cast<const char*>(rows), x_stride, Quant::groups(k)};
  for (int64_t i = 0; i < n; i += Quant::kPanel)
    for (int64_t j = 0; j < m; ++j) {
      float acc[Quant::kPanel] = {};
      const uint8_t* w = static_cast<const uint8_t*>(weights) + i * w_stride;
      for (int64_t g = 0; g < x.groups; ++g, w += kGroupBytes<Bits>) {
        float scales[Quant::kPanel];
        std::memcpy(scales, w, sizeof scales);
        const uint8_t* u = w + sizeof scales;
        const int8_t* q = reinterpret_cast<const int8_t*>(x.bytes(j, g));
        int32_t sum[Quant::kPanel] = {};
        for (int64_t p = 0; p < Quant::kGroup; p += 4, q += 4) {
          const int64_t line = p / 4;
          for (int64_t b = 0; b < Quant::kLine; ++b) {
            const int value = Bits == 8 ? u[line * Quant::kLine + b] : u[line / 2 * Quant::kLine + b] >> (line % 2 * 4) & 15;
            sum[b / 4] += value * q[b % 4];
          }
        }
        for (int64_t r = 0; r < Quant::kPanel; ++r) {
          const float scale = scales[r] * x.scale(j, g);
          acc[r] += float(sum[r] - x.sum(j, g) * kZero<Bits>) * scale;
        }
      }
      for (int64_t r = 0; r < Quant::kPanel && i + r < n; ++r) {
        float* to = out + j * out_stride + i + r;
        *to = accumulate ? *to + acc[r] : acc[r];
      }
    }
}

}  // namespace

namespace lynx_rt::cpu {
const QuantKernels kScalarQuantKernels = {gemm<8>, gemm<4>, pack_quant, quantize_group<8>, quantize_group<4>};
}
