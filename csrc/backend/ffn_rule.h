// FFN rules: the arithmetic of an expert beside its matrix products.
#pragma once
#include <cstdint>

namespace lynx_rt {

// The function between an expert's two products. kRelu2 and kGelu belong to experts without `up`, kGeluTanh to both kinds, the others to
// experts with it.
enum class Activation : uint8_t {
  kSilu,           // silu(gate) * up (arXiv 2002.05202 eq. 6)
  kClampedSwiglu,  // g = min(gate, limit), u = clamp(up, -limit, limit): g * sigmoid(alpha * g) * (u + 1) (gpt-oss)
  kGeluTanh,  // gelu(gate) * up, or gelu(gate) without up, gelu(x) = x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))) (Gemma; arXiv 1606.08415)
  kGelu,      // gelu(gate), gelu(x) = x / 2 * (1 + erf(x / sqrt(2))) (arXiv 1606.08415)
  kRelu2,     // max(gate, 0)^2 (Nemotron-H; arXiv 2109.08668 section 3)
};
struct FfnRule {
  Activation activation = Activation::kSilu;
  float alpha = 1.702f, limit = 7;      // for kClampedSwiglu
  bool scale_input = false;             // the weight of a pair multiplies the expert's input, not its output (Llama 4)
  const float* expert_scale = nullptr;  // [E] in the backend's memory: factor of each expert's output; null = 1 (Gemma 4)
};

}  // namespace lynx_rt
