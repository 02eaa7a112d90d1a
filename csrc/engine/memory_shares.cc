#include "engine/memory_shares.h"

#include <algorithm>
#include <cmath>
#include <string_view>
#include <utility>

#include "backend/cpu/scratch_bound.h"
#include "base/error.h"
#include "engine/encoder_cache.h"
#include "engine/memory_plan.h"
#include "engine/state_cache.h"
#include "model/describe.h"
#include "model/workspace.h"
#include "tiers/residency.h"

namespace lynx_rt {

int64_t parse_memory(const std::string& field, const std::string& text, int64_t all, int64_t chosen) {
  if (text == "auto") return chosen;
  static constexpr std::pair<std::string_view, double> kUnits[] = {
      {"%", 0},    {"KiB", 1024}, {"MiB", 1048576}, {"GiB", 1073741824}, {"TiB", 1099511627776},
      {"KB", 1e3}, {"MB", 1e6},   {"GB", 1e9},      {"TB", 1e12},        {"B", 1}};
  double unit = 1, value = 0;
  std::string_view number = text;
  for (const auto& [suffix, factor] : kUnits)
    if (number.ends_with(suffix)) {
      unit = factor;
      number.remove_suffix(suffix.size());
      break;
    }
  const bool share = unit == 0;
  if (!read_number(number, value) || !(value >= 0) || value > (share ? 100.0 : 9e18 / unit))
    invalid(field, "expected \"auto\", bytes (\"8GB\", \"512MiB\", \"1000000\") or a share (\"25%\"), got \"", text, "\"");
  return int64_t(share ? std::ceil(value / 100 * double(all)) : value * unit);
}

int64_t parse_total(const std::string& text, int64_t free) { return parse_memory("memory", text, free, free / 5 * 4); }

int64_t step_bytes(Backend& backend, const ModelConfig& m, const EngineOptions& o) {
  const int64_t rows = o.max_num_batched_tokens, logit_rows = max_logit_rows(o);
  ScratchSizes scratch;
  scratch.rows = rows;
  scratch.top_k = m.num_experts_per_tok;
  scratch.hidden = m.hidden_size;
  scratch.width = m.moe_intermediate_size;
  scratch.mlp = std::max(m.intermediate_size, m.shared_expert_width);
  scratch.columns = std::max({m.hidden_size, m.num_heads * std::max(m.head_dim, m.v_head_dim), m.q_lora_rank});
  // Pages of a workspace that nothing writes to take no memory, so it is made to be measured. The rope table is left out: it grows with
  // the longest sequence, and is less than a hundredth of its K and V.
  return Workspace(backend, m, rows, logit_rows, step_recording(o)).bytes() + scratch_bytes(scratch) +
         checked_mul(logit_rows, m.vocab_size, "logits") * int64_t(sizeof(float));
}

MemoryShares divide_memory(int64_t total, const ModelConfig& m, DType kv_dtype, const EngineOptions& o, const MemoryDemand& d) {
  const KvPages pages(m, kv_dtype, o, o.max_num_seqs);
  // States get half of what the KV cache gets at most, see plan_memory().
  const int64_t states = checked_mul(d.state_slot, wanted_state_slots(o), "max_num_seqs");
  int64_t kv_least = d.state_slot + pages.bytes(o.max_model_len ? pages.blocks_per_seq() : 1, 1);
  int64_t kv_most = states + std::max(states, pages.bytes(pages.wanted_blocks(), pages.windows(pages.wanted_blocks())));
  if (o.kv_cache_memory_bytes) kv_least = kv_most = o.kv_cache_memory_bytes;
  int64_t experts_most = d.slot * d.num_experts, experts_least = std::min(experts_most, d.low + 2 * d.slot);
  if (!o.expert_memory.empty() && o.expert_memory != "auto")
    experts_least = experts_most = std::min(experts_most, parse_memory("expert_memory", o.expert_memory, experts_most, 0));

  const int64_t needed = d.weights + d.steps + kv_least + experts_least;
  if (total < needed) {
    const bool given = o.kv_cache_memory_bytes > 0;
    std::string kv = str_cat(kv_least, " of KV cache", states > 0 ? " and states of sequences" : "");
    if (!given) kv += str_cat(" for one request of ", o.max_model_len ? o.max_model_len : o.block_size, " tokens");
    if (d.num_experts) kv += str_cat(" and ", experts_least, " of experts");
    fail(ErrorCode::kOutOfMemory, "memory", "memory: ", total, " bytes were asked for, but ", d.weights, " of weights, ", d.steps,
         " of activations", d.num_experts ? ", " : " and ", kv, " need ", needed, "; pass memory=", needed,
         " or more, or smaller values of max_num_batched_tokens, max_num_seqs",
         o.max_model_len && !given ? ", max_model_len" : "",
         m.num_experts > 0 && d.num_experts == 0 ? ", or the expert_file that `lynx-rt pack` makes, to read experts from" : "");
  }
  const int64_t rest = total - d.weights - d.steps;
  MemoryShares shares;
  shares.kv = std::min({std::max({kv_least, rest / 2, rest - experts_most}), kv_most, rest - experts_least});
  shares.experts = std::min(experts_most, rest - shares.kv);
  return shares;
}

std::vector<ForetoldMemory> foretell_memory(const std::string& path, int64_t total, const EngineOptions& options) {
  const ModelDescription model = describe_model(path);
  const ModelConfig& m = model.config;
  BackendOptions on_cpu;
  on_cpu.device = "cpu";
  on_cpu.compute_dtype = m.dtype;
  on_cpu.num_threads = 1;
  const std::unique_ptr<Backend> backend = make_backend(on_cpu);
  const bool low = parse_residency(options.expert_policy).low;
  std::vector<ForetoldMemory> foretold;
  for (const WeightOption& weights : model.options) {
    ForetoldMemory& f = foretold.emplace_back();
    f.quantization = weights.quantization;
    f.demand.weights = weights.mapped_bytes + weights.anonymous_bytes - weights.expert_bytes;
    f.demand.steps = step_bytes(*backend, m, options);
    f.demand.steps += encoder_memory(m, *backend, options, std::max<int64_t>(0, total - f.demand.weights - f.demand.steps)).all();
    f.demand.state_slot = StateCache::slot_bytes(state_bytes(m, m.dtype));
    f.demand.slot = weights.slot_bytes;
    f.demand.num_experts = m.num_moe_layers() * m.num_experts;
    f.demand.low = low ? weights.low_bytes : 0;
    try {
      f.shares = divide_memory(total, m, m.dtype, options, f.demand);
      const MemoryPlan plan = plan_memory(m, m.dtype, options, {f.shares.kv, total}, f.demand.state_slot);
      f.kv_bytes = plan.kv_bytes;
      f.max_model_len = plan.max_model_len;
    } catch (const Error& e) {
      if (e.code() != ErrorCode::kOutOfMemory) throw;
      f.error = e.what();
    }
  }
  return foretold;
}

}  // namespace lynx_rt
