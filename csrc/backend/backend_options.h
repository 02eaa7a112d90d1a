// The options that a backend is made with, and their text forms.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "base/blocks.h"
#include "base/tensor.h"
#include "tiers/residency.h"

namespace lynx_rt {

class Backend;
enum class WeightUse : uint8_t;

// The value of `quantization` with which a checkpoint's quantised weights are decoded to 16 bit, although products take their form.
inline constexpr std::string_view kDequantize = "dequantize";
// "none", kDequantize, "int8" or "int4"; throws kInvalidArgument (field quantization).
QuantFormat parse_quantization(const std::string& text);
// Whether weights that a file has in these blocks stay so with that quantisation: FP8 is quantised further, as weights of 16 bit are.
bool stays_in_blocks(const BlockRows& rows, const std::string& quantization);
// Whether `activations` is "int8"; not for "bfloat16". Throws kInvalidArgument (field activations) for another value.
bool parse_activations(const std::string& text);

// The view that the CPU backend's place functions return for a weight with that quantisation; where they quantise it, without its
// data. For sizes that are reported before anything is loaded.
WeightView view_on_cpu(const WeightView& weight, WeightUse use, QuantFormat quantization);

struct BackendOptions {
  std::string device = "auto";  // "auto" (cuda where this build and machine have it, else cpu), "cpu", "cuda", "cuda:N"
  DType compute_dtype = DType::kF32;
  int num_threads = 0;           // 0 = cpu: plan_computing(), cuda: usable_cores()
  std::string isa;               // see resolve_isa()
  bool dependent_launch = true;  // cuda: see cuda::Stream
  // cpu: format of the weights of the experts and of mlp(), which are quantised when they are placed; where it is not kPlain, those
  // of linear() and logits() are int8. quantization_cache: the file that keeps the quantised weights ("" = none); the caller makes
  // sure that it belongs to the same weights.
  QuantFormat quantization = QuantFormat::kPlain;
  std::string quantization_cache = "";
  // cpu: products with weights in blocks (QuantFormat::kBlocks) take activations in int8, except for FP8; else in the compute dtype, and
  // decode the weights to the checkpoint's dtype.
  bool int8_activations = true;
};

// Experts on a device whose memory does not hold all of them.
struct ExpertTierOptions {
  ResidencyRule rule = {};   // which experts lie in the device's memory
  ExpertHistory lists = {};  // of the policy static, see Residency
  int64_t budget = 0;        // bytes of the device's memory for experts
  int64_t slot_bytes = 0;    // the most bytes of an expert: Backend::expert_bytes()
  int64_t num_layers = 0;    // with experts
  int64_t num_experts = 0;   // of a layer, at least 2
};

// Throws kUnsupported for a device this build lacks, saying how to get it; kInvalidArgument for an unknown one.
std::unique_ptr<Backend> make_backend(const BackendOptions& options);

// Text for people: the CUDA devices of this machine, or why there are none.
std::string describe_cuda();

}  // namespace lynx_rt
