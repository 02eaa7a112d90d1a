// Quantised products must have the scalar kernels' bits on every instruction set of this CPU; sanitizers check the memory accesses.
#include <cstring>
#include <random>
#include <vector>

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

}  // namespace

int main() {
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
