// Quantised products must have the scalar kernels' bits on every instruction set of this CPU; sanitizers check the memory accesses.
#include <cstring>
#include <random>
#include <vector>

#include "backend/cpu/kernels/kernels.h"
#include "backend/cpu/kernels/quant.h"
#include "backend/device_array.h"
#include "base/cpu_features.h"
#include "check.h"

using namespace lynx_rt;

namespace {

std::vector<float> normal(std::mt19937& random, int64_t count) {
  std::normal_distribution<float> distribution;
  std::vector<float> out(static_cast<size_t>(count));
  for (float& v : out) v = distribution(random);
  return out;
}

// Computes linear() and mlp() of `rows` rows of `k` values with a backend of the given instruction set.
std::vector<float> compute(const char* isa, QuantFormat format, int64_t rows, int64_t k, int64_t n) {
  BackendOptions options;
  options.device = "cpu";
  options.num_threads = 2;
  options.isa = isa;
  options.quantization = format;
  const auto backend = make_backend(options);
  std::mt19937 random(static_cast<unsigned>(rows + k + n));
  const std::vector<float> x = normal(random, rows * k), gate = normal(random, n * k), up = normal(random, n * k),
                           down = normal(random, k * n);
  ExpertWeights w;
  w.gate = {gate.data(), DType::kF32, n, k};
  w.up = {up.data(), DType::kF32, n, k};
  w.down = {down.data(), DType::kF32, k, n};
  backend->place_experts({&w, 1});
  std::vector<float> out(static_cast<size_t>(rows * (n + k)));
  const LinearPart part{w.gate, {}, 0};
  const Activations input(x.data(), rows, k);
  backend->linear(input, {&part, 1}, false, out.data(), n);
  backend->mlp(input, w, {}, out.data() + rows * n);
  return out;
}

// Weights of a product and rows of x, packed. The values of both are at random, or only their least and largest ones: where one
// sign prevails, sums are the largest that there are, and any step that saturates or overflows shows.
struct Packed {
  std::vector<char> weights, rows;
  int64_t w_stride, x_stride;
};

enum class Values { kAny, kLargest, kLeastAndLargest };

Packed pack(int bits, Values values, int64_t m, int64_t k, int64_t n) {
  using cpu::Quant;
  std::mt19937 random(static_cast<unsigned>(m + k + n));
  const auto any = [&](int lowest, int highest) { return lowest + int(random() % unsigned(highest - lowest + 1)); };
  const int64_t groups = Quant::groups(k), group_bytes = Quant::group_bytes(bits);
  Packed p{{}, {}, groups * group_bytes / Quant::kPanel, Quant::x_bytes(k)};
  p.weights.resize(size_t(round_up(n, Quant::kPanel) * p.w_stride));
  for (char& u : p.weights) u = char(values == Values::kAny ? any(0, 255) : values == Values::kLargest ? 255 : 255 * any(0, 1));
  for (size_t group = 0; group < p.weights.size(); group += size_t(group_bytes))
    for (size_t r = 0; r < size_t(Quant::kPanel); ++r) {
      const float scale = float(any(-64, 64)) / 64;
      std::memcpy(&p.weights[group + 4 * r], &scale, 4);
    }
  p.rows.resize(size_t(m * p.x_stride));
  for (int64_t j = 0; j < m; ++j) {
    char* row = &p.rows[size_t(j * p.x_stride)];
    for (int64_t g = 0; g < groups; ++g) {
      int32_t sum = 0;
      for (int64_t i = 0; i < Quant::kGroup; ++i) {
        const int sign = values == Values::kLargest ? j % 2 : any(0, 1);
        const int q = values == Values::kAny ? any(-127, 127) : 127 - 254 * sign;
        row[g * Quant::kGroup + i] = char(q);
        sum += q;
      }
      const float scale = float(any(1, 64)) / 16;
      std::memcpy(const_cast<float*>(Quant::x_scales(row, groups)) + g, &scale, 4);
      std::memcpy(const_cast<int32_t*>(Quant::x_sums(row, groups)) + g, &sum, 4);
    }
  }
  return p;
}

std::vector<float> multiply(Isa isa, int bits, const Packed& p, int64_t m, int64_t k, int64_t n, bool accumulate) {
  const cpu::QuantKernels& kernels = cpu::quant_kernels_for(isa);
  const int64_t stride = n + 3;
  std::vector<float> out(size_t(m * stride), 1.5f);
  (bits == 8 ? kernels.gemm_int8 : kernels.gemm_int4)(p.weights.data(), p.w_stride, n, p.rows.data(), p.x_stride, m, k,
                                                      out.data(), stride, accumulate, nullptr);
  return out;
}

void check_kernels(int bits, Values values, int64_t m, int64_t k, int64_t n) {
  const Packed p = pack(bits, values, m, k, n);
  for (bool accumulate : {false, true}) {
    const std::vector<float> scalar = multiply(Isa::kScalar, bits, p, m, k, n, accumulate);
    for (Isa isa : supported_isas()) {
      const std::vector<float> out = multiply(isa, bits, p, m, k, n, accumulate);
      CHECK(std::memcmp(out.data(), scalar.data(), scalar.size() * sizeof(float)) == 0);
    }
  }
}

}  // namespace

int main() {
  for (int bits : {8, 4})
    for (Values values : {Values::kAny, Values::kLargest, Values::kLeastAndLargest})
      for (int64_t m = 1; m <= 70; ++m) check_kernels(bits, values, m, m % 3 ? 128 * (m % 3) : 300, m % 2 ? 16 : 35);
  const int64_t shapes[][3] = {{1, 1, 1}, {1, 127, 15}, {2, 129, 17}, {3, 128, 16}, {16, 257, 33}, {17, 130, 5}, {70, 64, 48}};
  for (QuantFormat format : {QuantFormat::kInt8, QuantFormat::kInt4})
    for (const auto& [rows, k, n] : shapes) {
      const std::vector<float> scalar = compute("scalar", format, rows, k, n);
      // silu between the products of mlp() rounds differently with fused multiply-add, so only linear()'s part is compared.
      for (Isa isa : supported_isas()) {
        const std::vector<float> out = compute(isa_name(isa), format, rows, k, n);
        CHECK(std::memcmp(out.data(), scalar.data(), static_cast<size_t>(rows * n) * sizeof(float)) == 0);
      }
    }
  return check::result("test_quantized");
}
