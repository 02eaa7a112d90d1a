// EngineCore's functions for research: logits of one sequence, recording of the routing, comparison of experts.
#include <utility>

#include "base/cpu_topology.h"
#include "base/error.h"
#include "engine/engine_core.h"
#include "research/calibration.h"

namespace lynx_rt {

std::string EngineCore::limit_reason() const {
  const bool of_model = plan_.max_model_len == config_.max_position_embeddings && !config_.context_limit.empty();
  return of_model ? str_cat(" (", config_.context_limit, ")") : "";
}

// The sequence has pages of its own, so that running requests are not touched.
void EngineCore::run_single(const std::vector<int32_t>& tokens, int64_t chunk, std::span<const RequestImage> images,
                            const MoeObserver& observe, const std::function<void(int64_t, int64_t)>& done) {
  if (tokens.empty()) invalid("token_ids", "expected at least one token, got none");
  if (chunk < 0) invalid("chunk", "expected 0 (all) or a positive number, got ", chunk);
  check_tokens("token_ids", tokens, config_.vocab_size);
  if (int64_t(tokens.size()) > plan_.max_model_len)
    invalid("token_ids", "expected at most max_model_len = ", plan_.max_model_len, " tokens, got ", tokens.size(),
            limit_reason());
  int64_t total = int64_t(tokens.size()), size = options_.block_size;
  if (chunk == 0) chunk = total;
  chunk = std::min(chunk, decoder_.max_rows());
  std::vector<int32_t> blocks(size_t(ceil_div(total, size)));
  const KvCache cache(*backend_, config_, int64_t(blocks.size()), size);
  const StateCache states(*backend_, state_bytes(config_, backend_->compute_dtype()), 1);
  for (size_t i = 0; i < blocks.size(); ++i) blocks[i] = int32_t(i);
  Batch batch(decoder_.first_image_rope_row(), encoder_ ? config_.vision->out_columns() : 0);
  for (int64_t begin = 0; begin < total; begin += chunk) {
    check_files();
    int64_t count = std::min(chunk, total - begin);
    const std::span<const int32_t> part = std::span(tokens).subspan(size_t(begin), size_t(count));
    const BatchView& view = batch.build_single(part, begin, blocks, size, images);
    decoder_.forward(view, cache, {}, observe, states.views(), batch.image_rows());
    done(begin, count);
    decoder_.end_step(layer_stats_);
  }
}

std::vector<float> EngineCore::forward(const std::vector<int32_t>& tokens, int64_t chunk, std::vector<ImageInput> images) {
  const int64_t vocab = config_.vocab_size;
  check_tokens("token_ids", tokens, vocab);
  std::vector<RequestImage> placed = check_images(config_, encoder_ != nullptr, tokens, std::move(images));
  std::vector<DeviceArray<float>> outputs;
  for (RequestImage& image : placed) {
    encoder_->check_size(image);
    image.output = outputs.emplace_back(encoder_->encode(image)).get();
  }
  std::vector<float> out;
  run_single(tokens, chunk, placed, {}, [&](int64_t begin, int64_t count) {
    out.resize(size_t(checked_mul(int64_t(tokens.size()), vocab, "logits")));
    for (int64_t i = 0; i < count; i += decoder_.max_logit_rows()) {
      std::vector<int32_t> rows;
      for (int64_t j = i; j < std::min(count, i + decoder_.max_logit_rows()); ++j) rows.push_back(int32_t(j));
      decoder_.logits(rows, logits_.get());
      backend_->read(out.data() + (begin + i) * vocab, logits_.get(), int64_t(rows.size()) * vocab * int64_t(sizeof(float)));
    }
  });
  return out;
}

// Records a step that has run; `batch` is in host memory.
void EngineCore::record(const ScheduledStep& step, const BatchView& batch) {
  if (!records_routed_experts()) return;
  decoder_.read_routed_experts(routed_ids_);
  if (options_.enable_return_routed_experts) routed_experts_.store(routed_ids_, {batch.slots, size_t(batch.num_rows)});
  if (!options_.record_router_logits || batch.phase != Phase::kDecodeOnly) return;

  RouterLogits& r = router_logits_;
  if (config_.choice_bias && r.step.empty()) decoder_.read_choice_bias(r.choice_bias);
  std::vector<float> scores;
  decoder_.read_router_logits(scores);
  r.scores.insert(r.scores.end(), scores.begin(), scores.end());
  decoder_.read_next_logits(scores);
  r.next_scores.insert(r.next_scores.end(), scores.begin(), scores.end());
  r.routed_experts.insert(r.routed_experts.end(), routed_ids_.begin(), routed_ids_.end());
  size_t row = 0;
  for (const ScheduledRequest& s : step.requests) {
    if (s.request->num_decode_steps == 0) {
      const auto prompt = s.request->tokens.begin();
      r.prompt_token.insert(r.prompt_token.end(), prompt, prompt + s.request->prompt_len);
      r.prompt_request.resize(r.prompt_token.size(), s.request->id);
    }
    for (int64_t i = 0; i < s.num_tokens; ++i, ++row) {
      r.step.push_back(recorded_steps_);
      r.request.push_back(s.request->id);
      r.position.push_back(batch.positions[row]);
      r.token.push_back(batch.token_ids[row]);
      r.exact.push_back(batch.exact[row]);
    }
  }
  ++recorded_steps_;
}

// Returns the experts of the positions that have not been returned: those computed since the last call; after a preemption, which
// has all positions computed again, those from 0 on.
RoutedExperts EngineCore::take_routed_experts(Request& r) {
  if (!options_.enable_return_routed_experts) return {};
  const int64_t begin = r.num_routed_returned;
  r.num_routed_returned = r.num_computed;
  return routed_experts_.gather(r.blocks, begin, r.num_computed);
}

RouterLogits EngineCore::take_router_logits() {
  if (!options_.record_router_logits) invalid("record_router_logits", "the engine was made without it");
  RouterLogits out = std::exchange(router_logits_, {});
  out.num_model_layers = config_.num_layers;
  for (int64_t l = 0; l < config_.num_layers; ++l)
    if (config_.layers[size_t(l)].moe) out.layers.push_back(int32_t(l));
  out.num_experts = config_.num_experts;
  out.num_experts_per_tok = config_.num_experts_per_tok;
  out.norm_topk_prob = config_.router.norm_topk;
  out.router_kind = to_string(config_.router.kind);
  out.num_groups = config_.router.num_groups;
  out.top_groups = config_.router.top_groups;
  out.group_top2 = config_.router.group_top2;
  return out;
}

ExpertComparison EngineCore::compare_experts(const std::vector<int32_t>& tokens, ExpertMetric metric) {
  if (!backend_->host_memory())
    fail(ErrorCode::kUnsupported, "device", "device: experts are compared on the CPU only, got ", backend_->description(),
         "; use device=\"cpu\"");
  if (store_)
    fail(ErrorCode::kUnsupported, "expert_memory",
         "expert_memory: experts are compared only while all are in memory; leave it out");
  ExpertComparison out;
  out.num_layers = decoder_.num_moe_layers();
  out.num_experts = config_.num_experts;
  if (out.num_layers == 0) fail(ErrorCode::kUnsupported, "model", "model: there are no experts to compare");
  if (config_.ffn.activation == Activation::kClampedSwiglu || config_.ffn.scale_input)
    fail(ErrorCode::kUnsupported, "model_type", "model_type: experts of ", config_.model_type,
         " are not compared; supported: models whose experts are down(silu(gate) * up) or down(gelu(gate) * up), weighed at "
         "their output");
  out.num_tokens = int64_t(tokens.size());
  out.sums.resize(size_t(out.num_layers * out.num_experts * out.num_experts));
  out.usage.resize(size_t(out.num_layers * out.num_experts));
  ExpertComparer compare(*backend_, config_, metric, options_.num_threads ? options_.num_threads : usable_cores(),
                         int64_t(tokens.size()), out);
  run_single(tokens, 0, {}, std::ref(compare), [](int64_t, int64_t) {});
  return out;
}

}  // namespace lynx_rt
