// FFN rules: the arithmetic of an expert beside its matrix products.
#pragma once
#include <cstdint>

namespace lynx_rt {

// The function between an expert's two products.
enum class Activation : uint8_t {
  kSilu,           // silu(gate) * up (arXiv 2002.05202 eq. 6)
  kClampedSwiglu,  // g = min(gate, limit), u = clamp(up, -limit, limit): g * sigmoid(alpha * g) * (u + 1) (gpt-oss)
};
struct FfnRule {
  Activation activation = Activation::kSilu;
  float alpha = 1.702f, limit = 7;  // for kClampedSwiglu
  bool scale_input = false;         // the weight of a pair multiplies the expert's input, not its output (Llama 4)
};

}  // namespace lynx_rt
