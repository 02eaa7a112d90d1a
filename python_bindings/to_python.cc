#include "to_python.h"

#include <pybind11/stl.h>

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
  d["routed_experts"] = to_array(std::move(r.routed_experts), {rows, layers, r.num_experts_per_tok});
  d["step"] = to_array(std::move(r.step), {rows});
  d["request"] = to_array(std::move(r.request), {rows});
  d["position"] = to_array(std::move(r.position), {rows});
  d["exact"] = to_array(std::move(r.exact), {rows});
  return d;
}

py::dict to_dict(const EngineStats::Layer& l) {
  py::dict d;
  d["layer"] = l.layer;
  d["steps"] = l.steps;
  d["rows"] = l.rows;
  d["union_before"] = l.union_before;
  d["active"] = l.active;
  d["remapped_pairs"] = l.remapped_pairs;
  d["guard_hits"] = l.guard_hits;
  d["retained_mass"] = l.retained_mass;
  return d;
}

py::dict to_dict(const EngineStats& s) {
  py::dict d;
#define LYNX_FIELD(name) d[#name] = s.name
  LYNX_FIELD(num_running);
  LYNX_FIELD(num_waiting);
  LYNX_FIELD(kv_blocks_used);
  LYNX_FIELD(kv_blocks_total);
  LYNX_FIELD(steps);
  LYNX_FIELD(decode_steps);
  LYNX_FIELD(prompt_tokens);
  LYNX_FIELD(cached_prompt_tokens);
  LYNX_FIELD(generation_tokens);
  LYNX_FIELD(preemptions);
  LYNX_FIELD(finished);
  LYNX_FIELD(aborted);
  LYNX_FIELD(step_seconds);
  LYNX_FIELD(decode_seconds);
  LYNX_FIELD(model_seconds);
  LYNX_FIELD(sampling_seconds);
  LYNX_FIELD(decode_rows);
  LYNX_FIELD(bytes_read);
#undef LYNX_FIELD
  py::list layers, ops;
  for (const EngineStats::Layer& l : s.layers) layers.append(to_dict(l));
  for (const EngineStats::Op& o : s.ops) {
    py::dict e;
    e["name"] = o.name;
    e["calls"] = o.calls;
    e["seconds"] = o.seconds;
    e["bytes"] = o.bytes;
    ops.append(e);
  }
  py::dict slo;
  slo["target_seconds"] = s.slo.target_seconds;
  slo["fixed_seconds"] = s.slo.fixed_seconds;
  slo["seconds_per_expert"] = s.slo.seconds_per_expert;
  slo["steps_over_target"] = s.slo.steps_over_target;
  slo["level"] = s.slo.level;
  slo["levels"] = s.slo.levels;
  d["slo"] = s.slo.levels.empty() ? py::object(py::none()) : slo;
  d["layers"] = layers;
  d["ops"] = ops;
  return d;
}

py::dict to_dict(const ModelInfo& i) {
  py::dict d;
#define LYNX_FIELD(name) d[#name] = i.name
  LYNX_FIELD(model_type);
  LYNX_FIELD(dtype);
  LYNX_FIELD(device);
  LYNX_FIELD(hidden_size);
  LYNX_FIELD(num_layers);
  LYNX_FIELD(num_heads);
  LYNX_FIELD(num_kv_heads);
  LYNX_FIELD(head_dim);
  LYNX_FIELD(vocab_size);
  LYNX_FIELD(num_experts);
  LYNX_FIELD(num_experts_per_tok);
  LYNX_FIELD(moe_intermediate_size);
  LYNX_FIELD(num_moe_layers);
  LYNX_FIELD(max_model_len);
  LYNX_FIELD(weight_bytes);
  LYNX_FIELD(kv_bytes);
  LYNX_FIELD(kv_bytes_per_token);
  LYNX_FIELD(workspace_bytes);
  LYNX_FIELD(eos_token_ids);
  LYNX_FIELD(max_position_embeddings);
  LYNX_FIELD(warnings);
  LYNX_FIELD(copied_weight_bytes);
#undef LYNX_FIELD
  return d;
}

}  // namespace lynx_rt
