// EngineCore's reports: its statistics, what requests did in a step, and the model.
#include <span>
#include <vector>

#include "engine/engine_core.h"
#include "engine/public_fields.h"
#include "model/load_weights.h"

namespace lynx_rt {

void EngineCore::reset_stats() {
  counters_ = EngineStats{};
  const size_t experts = backend_->host_memory() ? size_t(decoder_.num_moe_layers() * config_.num_experts) : 0;
  expert_counts_ = {0, 0, std::vector<int64_t>(experts), std::vector<int64_t>(experts)};
  for (int64_t l = 0; l < config_.num_layers; ++l)
    if (config_.layers[size_t(l)].moe) counters_.layers.emplace_back().layer = l;
  preemptions_at_reset_ = scheduler_.num_preemptions();
  backend_->reset_profile();
  selection_.reset_report();
  if (store_) store_->reset_stats();
  if (encoder_) encoder_->reset_stats();
}

// Pages of groups differ in size, so they are counted by their bytes, in pages of all layers.
void EngineCore::count_pages(EngineStats& s) const {
  const std::vector<PageGroup>& groups = plan_.groups.groups;
  int64_t used = (pool_.num_blocks() - pool_.num_free()) * groups[0].bytes_per_token, per_page = groups[0].bytes_per_token;
  for (int64_t g = 0; g < windows_.num_groups(); ++g) {
    const int64_t bytes = groups[size_t(g + 1)].bytes_per_token;
    used += (windows_.pool(g).num_blocks() - windows_.pool(g).num_free()) * bytes;
    per_page += bytes;
  }
  per_page = std::max<int64_t>(per_page, 1);
  s.kv_blocks_total = plan_.kv_bytes / options_.block_size / per_page;
  s.kv_blocks_used = std::min(ceil_div(used, per_page), s.kv_blocks_total);
}

ExpertCounts EngineCore::expert_counts() const {
  ExpertCounts counts = expert_counts_;
  counts.steps = counters_.decode_steps;
  counts.rows = counters_.decode_rows;
  return counts;
}

EngineStats EngineCore::stats() const {
  EngineStats s = counters_;
  s.num_running = scheduler_.num_running();
  s.num_waiting = scheduler_.num_waiting();
  s.num_waiting_tokens = scheduler_.num_waiting_tokens();
  s.preemptions = scheduler_.num_preemptions() - preemptions_at_reset_;
  count_pages(s);
  for (const OpProfile& p : backend_->profile()) s.ops.push_back({p.name, p.calls, p.seconds, p.bytes});
  const BytesRead read = bytes_read();
  s.bytes_read = read.all;
  s.bytes_read_experts = read.experts;
  s.bytes_read_kv = read.kv;
  s.bytes_read_dense = read.all - read.experts - read.kv;
  selection_.report(s);
  if (encoder_) {
    s.images_encoded = encoder_->num_encoded();
    s.images_cached = encoder_->num_found();
    s.encoder_seconds = encoder_->seconds();
    s.encoder_cache_bytes = encoder_->bytes();
  }
  if (store_) {
    const ExpertStoreStats t = store_->stats();
    s.tier = {t.num_slots,     t.slot_bytes, t.num_resident,  t.hits,       t.misses,     t.decode_hits,
              t.decode_misses, t.prefetched, t.prefetch_used, t.bytes_read, t.num_failed, t.wait_seconds,
              t.read_seconds,  t.read_rate,  t.read_depth,    t.low_bytes,  t.late};
  }
  return s;
}

ModelInfo EngineCore::model_info() const {
  ModelInfo i;
  i.model_type = config_.model_type;
  i.dtype = dtype_name(backend_->compute_dtype());
  i.device = backend_->description();
#define LYNX_RT_FIELD(name) i.name = config_.name;
  LYNX_RT_MODEL_SHAPE_FIELDS(LYNX_RT_FIELD)
#undef LYNX_RT_FIELD
  i.num_moe_layers = decoder_.num_moe_layers();
  i.max_model_len = plan_.max_model_len;
  i.weight_bytes = weight_bytes_;
  i.kv_bytes = cache_.bytes();
  i.kv_bytes_per_token = KvCache::bytes_per_block(config_, backend_->compute_dtype(), 1);
  i.workspace_bytes = decoder_.workspace_bytes() + logits_.bytes();
  i.eos_token_ids = config_.eos_token_ids;
  i.warnings = weights_->warnings;
  if (!config_.context_limit.empty()) i.warnings.push_back(config_.context_limit);
  if (!plan_.warning.empty()) i.warnings.push_back(plan_.warning);
  if (encoder_) {
    i.image_token_id = config_.image_token_id;
    i.patch_size = config_.vision->patch_size;
    i.temporal_patch_size = config_.vision->temporal_patch_size;
    i.merge_size = config_.vision->merge_size;
  }
  i.copied_weight_bytes = copied_weight_bytes_;
  i.mapped_weight_bytes = mapped_weight_bytes(
      *weights_, [this](const void* data) { return checkpoint_.contains(data) || backend_->is_mapped(data); });
  if (mapped_experts_) i.mapped_weight_bytes += mapped_experts_->size();
  return i;
}

EngineCore::BytesRead EngineCore::bytes_read() const {
  BytesRead read;
  for (const OpProfile& p : backend_->profile()) read.all += p.bytes;
  read.experts = backend_->profile()[Backend::kExpertFfn].bytes;
  read.kv = backend_->profile()[Backend::kAttention].bytes;
  return read;
}

// Counts a step's decode rows by how their experts were chosen, and in a decode-only step what the selection did and what the
// requests had read. Called before postprocess(), which deletes the requests that have ended.
void EngineCore::count_selection(const ScheduledStep& step) {
  if (step.phase != Phase::kDecodeOnly) {
    counters_.decode_rows_mixed += step.num_decode_rows;
    return;
  }
  counters_.decode_rows += step.num_rows;
  for (size_t i = 0; i < step.requests.size(); ++i) {
    const ScheduledRequest& s = step.requests[i];
    if (s.request->params.exact)
      counters_.decode_rows_exact += s.num_tokens;
    else if (selection_.current().acts(step.phase, batch_.group_rows(i)))
      counters_.decode_rows_selected += s.num_tokens;
  }
  int64_t experts_read = 0;
  for (size_t i = 0; i < layer_stats_.size(); ++i) {
    add_step(counters_.layers[i], layer_stats_[i]);
    experts_read += layer_stats_[i].active;
  }
  const std::span<const uint8_t> uses = decoder_.expert_uses();
  for (size_t i = 0; i < uses.size(); ++i) {
    expert_counts_.wanted[i] += (uses[i] & Decoder::kWanted) != 0;
    expert_counts_.read[i] += (uses[i] & Decoder::kRead) != 0;
  }
  for (const ScheduledRequest& s : step.requests) {
    ++s.request->num_decode_steps;
    s.request->num_experts_read += experts_read;
  }
}

}  // namespace lynx_rt
