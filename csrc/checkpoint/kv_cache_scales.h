// Scales of a quantised KV cache, which calibration tools leave in checkpoints; this runtime does not quantise its cache.
#pragma once
#include <string_view>

namespace lynx_rt {

// Decides by the last part of the name, since families name their attention modules differently: k_scale, v_scale, q_scale,
// kv_scale, prob_scale and the like, their zero points, and the output scales of q_proj, k_proj, v_proj and their fusions.
// Sources of the names: compressed-tensors, AutoFP8, ModelOpt, Quark, and vLLM's maybe_remap_kv_scale_name.
bool is_kv_cache_scale(std::string_view tensor_name);

}  // namespace lynx_rt
