#include "checkpoint/kv_cache_scales.h"

#include <algorithm>
#include <iterator>

namespace lynx_rt {

namespace {

template <size_t N>
bool is_one_of(std::string_view text, const std::string_view (&list)[N]) {
  return std::find(std::begin(list), std::end(list), text) != std::end(list);
}

// Cuts the last part and its dot off a dotted name; returns that part.
std::string_view cut_last(std::string_view& name) {
  const size_t dot = name.rfind('.');
  const std::string_view last = dot == std::string_view::npos ? name : name.substr(dot + 1);
  name = dot == std::string_view::npos ? std::string_view() : name.substr(0, dot);
  return last;
}

}  // namespace

bool is_kv_cache_scale(std::string_view tensor_name) {
  constexpr std::string_view kOwn[] = {"k_scale",        "v_scale",        "q_scale",       "kv_scale",
                                       "qkv_scale",      "kv_cache_scale", "prob_scale",    "prob_output_scale",
                                       "k_zero_point",   "v_zero_point",   "q_zero_point",  "kv_zero_point",
                                       "k_global_scale", "v_global_scale", "q_global_scale"};
  constexpr std::string_view kOfOutputs[] = {"output_scale", "output_zero_point"};
  constexpr std::string_view kProjections[] = {"q_proj", "k_proj", "v_proj", "qkv_proj", "kv_proj"};
  const std::string_view last = cut_last(tensor_name);
  return is_one_of(last, kOwn) || (is_one_of(last, kOfOutputs) && is_one_of(cut_last(tensor_name), kProjections));
}

}  // namespace lynx_rt
