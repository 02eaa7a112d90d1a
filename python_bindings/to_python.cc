#include "to_python.h"

#include <pybind11/stl.h>

#include "engine/public_fields.h"

namespace lynx_rt {

py::list to_list(const std::vector<TokenLogprobs>& tokens) {
  py::list out;
  for (const TokenLogprobs& token : tokens) {
    py::list entries;
    for (const TokenLogprob& t : token) entries.append(py::make_tuple(t.token_id, t.logprob, t.rank));
    out.append(entries);
  }
  return out;
}

py::object to_object(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop: return py::str("stop");
    case FinishReason::kLength: return py::str("length");
    case FinishReason::kError: return py::str("error");
    case FinishReason::kTimeout: return py::str("abort");
    case FinishReason::kNone: break;
  }
  return py::none();
}

py::object to_object(const RoutedExperts& r) {
  if (r.num_layers == 0) return py::none();
  return to_array(std::vector<int16_t>(r.ids), {r.num_rows, r.num_layers, r.num_experts_per_tok});
}

py::dict to_dict(RouterLogits&& r) {
  const int64_t rows = int64_t(r.step.size()), layers = int64_t(r.layers.size());
  py::dict d;
  d["num_model_layers"] = r.num_model_layers;
  d["num_experts_per_tok"] = r.num_experts_per_tok;
  d["norm_topk_prob"] = r.norm_topk_prob;
  py::dict router;
  router["kind"] = r.router_kind;
  router["num_groups"] = r.num_groups;
  router["top_groups"] = r.top_groups;
  router["group_top2"] = r.group_top2;
  d["router"] = router;
  const int64_t biases = r.choice_bias.empty() ? 0 : r.num_experts;
  d["choice_bias"] = to_array(std::move(r.choice_bias), {layers, biases});
  d["layers"] = to_array(std::move(r.layers), {layers});
  d["scores"] = to_array(std::move(r.scores), {rows, layers, r.num_experts});
  const int64_t next_layers = r.next_scores.empty() ? 0 : layers - 1;
  d["next_scores"] = to_array(std::move(r.next_scores), {rows, next_layers, r.num_experts});
  d["routed_experts"] = to_array(std::move(r.routed_experts), {rows, layers, r.num_experts_per_tok});
  d["step"] = to_array(std::move(r.step), {rows});
  d["request"] = to_array(std::move(r.request), {rows});
  d["position"] = to_array(std::move(r.position), {rows});
  d["token"] = to_array(std::move(r.token), {rows});
  d["exact"] = to_array(std::move(r.exact), {rows});
  const int64_t prompt_tokens = int64_t(r.prompt_token.size());
  d["prompt_request"] = to_array(std::move(r.prompt_request), {prompt_tokens});
  d["prompt_token"] = to_array(std::move(r.prompt_token), {prompt_tokens});
  return d;
}

#define LYNX_RT_FIELD(name) d[#name] = from.name;

py::dict to_dict(const EngineStats::Layer& from) {
  py::dict d;
  LYNX_RT_LAYER_STATS_FIELDS(LYNX_RT_FIELD)
  return d;
}

static py::dict to_dict(const EngineStats::Op& from) {
  py::dict d;
  LYNX_RT_OP_STATS_FIELDS(LYNX_RT_FIELD)
  return d;
}

static py::dict to_dict(const EngineStats::Slo& from) {
  py::dict d;
  LYNX_RT_SLO_STATS_FIELDS(LYNX_RT_FIELD)
  LYNX_RT_SLO_STATS_PARTS(LYNX_RT_FIELD)
  return d;
}

static py::dict to_dict(const EngineStats::Tier& from) {
  py::dict d;
  LYNX_RT_TIER_STATS_FIELDS(LYNX_RT_FIELD)
  return d;
}

py::dict to_dict(const EngineStats& from) {
  py::dict d;
  LYNX_RT_STATS_FIELDS(LYNX_RT_FIELD)
  py::list layers, ops;
  for (const EngineStats::Layer& layer : from.layers) layers.append(to_dict(layer));
  for (const EngineStats::Op& op : from.ops) ops.append(to_dict(op));
  d["layers"] = layers;
  d["ops"] = ops;
  d["slo"] = from.slo.levels.empty() ? py::object(py::none()) : to_dict(from.slo);
  d["tier"] = from.tier.slots == 0 ? py::object(py::none()) : to_dict(from.tier);
  return d;
}

py::dict to_dict(const ModelInfo& from) {
  py::dict d;
  LYNX_RT_MODEL_TEXT_FIELDS(LYNX_RT_FIELD)
  LYNX_RT_MODEL_SHAPE_FIELDS(LYNX_RT_FIELD)
  LYNX_RT_MODEL_SIZE_FIELDS(LYNX_RT_FIELD)
  LYNX_RT_MODEL_OTHER_FIELDS(LYNX_RT_FIELD)
  return d;
}

#undef LYNX_RT_FIELD

}  // namespace lynx_rt
