// EngineCore's experts where they come from a file of their own.
#include <algorithm>
#include <utility>

#include "base/error.h"
#include "engine/engine_core.h"
#include "engine/expert_memory.h"
#include "model/expert_lists.h"
#include "model/load_weights.h"
#include "model/low_experts.h"
#include "model/sequence_memory.h"
#include "model/tiered_weights.h"

namespace lynx_rt {

// Decides whether all experts stay in memory, and takes them from the file.
void EngineCore::bind_expert_file(ModelWeights& weights) {
  expect_experts_of(*expert_file_, config_, {config_.model_type, options_.quantization, checkpoint_.fingerprint()});
  const bool low = parse_residency(options_.expert_policy).low;
  CheckpointExperts experts;  // for copies in low precision
  for (const LayerWeights& layer : weights.layers)
    if (low) experts.push_back(layer.experts);
  use_expert_file(*expert_file_, nullptr, weights);
  const int64_t all = bytes_of_all(*expert_file_), copies = low_bytes(experts);
  if (copies >= all)
    invalid("expert_policy",
            "expected no copies in low precision (miss=low, hi_lo) of experts that take no more than these: ", all,
            " bytes, int4 takes ", copies);
  int64_t bytes = all;
  if (!options_.memory.empty()) {
    divide_memory(weights, copies);
    bytes = shares_->experts;
  } else if (!options_.expert_memory.empty()) {
    bytes = parse_memory("expert_memory", options_.expert_memory, all, backend_->memory_budget().chosen);
  }
  if (bytes < all) {
    expert_memory_ = std::max<int64_t>(1, bytes);  // 0 would mean all
    if (low) {
      const int64_t least = copies + 2 * expert_file_->max_record_bytes(), free = backend_->memory_budget().free;
      if (bytes < least)
        invalid("expert_memory", "expected room for two experts and for copies of all in low precision (miss=low, hi_lo), ",
                least, " bytes, got ", bytes);
      if (copies > free)
        fail(ErrorCode::kOutOfMemory, "expert_memory", "expert_memory: copies of all experts in low precision take ", copies,
             " bytes, but ", free, " bytes of memory are free");
      low_experts_ = make_low_experts(experts, weights.copies, options_.num_threads);
    }
    return;
  }
  mapped_experts_.emplace(expert_file_->file()->path());
  use_expert_file(*expert_file_, mapped_experts_->data(), weights);
}

void EngineCore::divide_memory(const ModelWeights& weights, int64_t low_bytes) {
  if (!backend_->host_memory())
    fail(ErrorCode::kUnsupported, "memory", "memory: is divided on the CPU only, got ", backend_->description(),
         "; use kv_cache_memory_bytes");
  MemoryDemand demand;
  demand.weights = weight_bytes_on_cpu(weights, parse_quantization(options_.quantization));
  demand.steps = step_bytes(*backend_, config_, options_);
  demand.state_slot = StateCache::slot_bytes(state_bytes(config_, backend_->compute_dtype()));
  if (expert_file_) {
    demand.slot = expert_file_->max_record_bytes();
    demand.num_experts = bytes_of_all(*expert_file_) / demand.slot;
    demand.low = low_bytes;
  }
  const int64_t free = backend_->memory_budget().free, total = parse_total(options_.memory, free);
  if (total > free)
    fail(ErrorCode::kOutOfMemory, "memory", "memory: ", total, " bytes were asked for, but ", free,
         " bytes of memory are free; pass no more than that, or \"auto\"");
  if (weights.vision) {
    const int64_t rest = std::max<int64_t>(0, total - demand.weights - demand.steps);
    encoder_memory_ = encoder_memory(config_, *backend_, options_, rest);
    demand.steps += encoder_memory_.all();
  }
  shares_ = lynx_rt::divide_memory(total, config_, backend_->compute_dtype(), options_, demand);
}

void EngineCore::tier_experts(const ModelWeights& weights) {
  ExpertTierOptions tier;
  tier.rule = parse_residency(options_.expert_policy);
  tier.num_layers = config_.num_moe_layers();
  tier.num_experts = config_.num_experts;
  int64_t values = 0;
  for (const LayerWeights& layer : weights.layers)
    for (const ExpertWeights& e : layer.experts) {
      values += e.bytes();
      tier.slot_bytes = std::max(tier.slot_bytes, backend_->expert_bytes(e));
    }
  const Backend::MemoryBudget memory = backend_->memory_budget();
  const int64_t all = tier.num_layers * tier.num_experts * tier.slot_bytes, others = weight_bytes_ - values;
  tier.budget = parse_memory("expert_memory", options_.expert_memory, all, std::max<int64_t>(0, memory.chosen - others) / 2);
  const int64_t needed = others + std::min(tier.budget, all);
  if (needed > memory.free)
    fail(ErrorCode::kOutOfMemory, "expert_memory", "expert_memory: ", needed - others, " bytes of experts and ", others,
         " of other weights were asked for, but ", memory.free, " bytes are free on ", backend_->description(),
         "; pass less, or \"auto\"");
  if (tier.budget >= all) return;
  if (tier.budget < 2 * tier.slot_bytes || tier.num_experts < 2)
    invalid("expert_memory", "expected room for two experts at least, ", 2 * tier.slot_bytes, " bytes, got ", tier.budget);
  if (options_.expert_prefetch != "none")
    fail(ErrorCode::kUnsupported, "expert_prefetch", "expert_prefetch: expected none on ", backend_->description(),
         ", whose kernels read experts where they lie, got \"", options_.expert_prefetch, "\"");
  if (tier.rule.policy == ResidencyPolicy::kStatic) tier.lists = read_expert_lists(tier.rule.file, tier.num_layers);
  backend_->tier_experts(tier);
  tiered_ = true;
  weight_bytes_ = others + tier.budget;
}

std::unique_ptr<ExpertStore> EngineCore::make_store() {
  const ResidencyRule rule = parse_residency(options_.expert_policy);
  if (expert_memory_ == 0) return nullptr;
  const int64_t copies = low_experts_ ? low_experts_->bytes : 0;  // are in memory by now
  if (const int64_t free = backend_->memory_budget().free; expert_memory_ - copies > free)
    fail(ErrorCode::kOutOfMemory, "expert_memory", "expert_memory: ", expert_memory_, " bytes were asked for, but ", free,
         " bytes of memory are free; pass no more than that, or \"auto\"");
  const int64_t used = config_.num_experts_per_tok;
  const int64_t guesses = parse_prefetch(options_.expert_prefetch, config_.num_experts, used).num_guesses;
  if (rule.low && guesses > 0)
    invalid("expert_prefetch", "expected none with expert_policy=\"", options_.expert_policy,
            "\", whose steps read nothing for themselves; got \"", options_.expert_prefetch, "\"");
  ExpertStoreOptions store_options;
  store_options.low = low_experts_;
  store_options.io_timeout_s = options_.io_timeout_s;
  if (options_.on_log) store_options.on_report = [this](const std::string& text) { options_.on_log(LogLevel::kWarning, text); };
  if (rule.policy == ResidencyPolicy::kStatic) store_options.lists = read_expert_lists(rule.file, config_.num_moe_layers());
  auto store = std::make_unique<ExpertStore>(expert_file_, rule, expert_memory_, rule.low && rule.full < 0 ? 1 : used + guesses,
                                             std::move(store_options));
  store->measure_depth();
  return store;
}

std::unique_ptr<ExpertPrefetch> EngineCore::make_prefetch() {
  const PrefetchRule rule = parse_prefetch(options_.expert_prefetch, config_.num_experts, config_.num_experts_per_tok);
  if (rule.pregated && !backend_->host_memory())
    fail(ErrorCode::kUnsupported, "expert_prefetch", "expert_prefetch: pregated is for the CPU, got ", backend_->description(),
         "; use device=\"cpu\"");
  if (rule.num_guesses == 0 || !(store_ || rule.pregated) || config_.num_moe_layers() == 0) return nullptr;
  return std::make_unique<ExpertPrefetch>(*backend_, config_, *weights_, store_.get(), rule, options_.max_num_batched_tokens);
}

// Slots, and the tower's memory on the CPU, are taken but not touched yet, so that the system counts them as free. Copies in low
// precision have been written.
Backend::MemoryBudget EngineCore::memory_budget() const {
  Backend::MemoryBudget memory = backend_->memory_budget();
  const int64_t images = backend_->host_memory() ? encoder_memory_.all() : encoder_memory_.outputs;
  memory.free = std::max<int64_t>(0, memory.free - images - expert_memory_ + (low_experts_ ? low_experts_->bytes : 0));
  memory.chosen = std::max<int64_t>(0, memory.chosen - images);
  memory.chosen = std::min(shares_ ? shares_->kv : memory.chosen, memory.free);
  return memory;
}

std::unique_ptr<EncoderCache> EngineCore::make_encoder() {
  if (!weights_->vision || config_.image_token_id < 0) {
    if (options_.encoder_cache_memory_bytes > 0)
      invalid("encoder_cache_memory_bytes", "expected 0 for a model that reads text alone, got ",
              options_.encoder_cache_memory_bytes);
    return nullptr;
  }
  if (!shares_) encoder_memory_ = encoder_memory(config_, *backend_, options_, backend_->memory_budget().chosen);
  return std::make_unique<EncoderCache>(*backend_, *config_.vision, *weights_->vision, encoder_memory_);
}

std::unique_ptr<VirtualCache> EngineCore::make_virtual_cache() {
  if (options_.virtual_residents == 0) return nullptr;
  if (store_ || tiered_) invalid("virtual_residents", "expected 0 with expert_memory, whose cache is a real one");
  if (config_.num_moe_layers() == 0) invalid("virtual_residents", "expected 0 for a model without experts");
  if (!backend_->host_memory())
    fail(ErrorCode::kUnsupported, "virtual_residents", "virtual_residents: expected 0 on ", backend_->description(),
         "; use device=\"cpu\"");
  return std::make_unique<VirtualCache>(options_.virtual_residency, options_.virtual_residents, config_.num_moe_layers(),
                                        config_.num_experts);
}

}  // namespace lynx_rt
