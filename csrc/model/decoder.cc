#include "model/decoder.h"

#include <algorithm>
#include <functional>

#include "model/norm.h"
#include "model/vision/vision_tower.h"

namespace lynx_rt {

Decoder::Decoder(Backend& backend, const ModelConfig& config, const ModelWeights& weights, int64_t max_rows,
                 int64_t max_logit_rows, int64_t max_positions, StepRecording recording, ExpertStore* store,
                 ExpertPrefetch* prefetch)
    : backend_(backend),
      config_(config),
      weights_(weights),
      max_rows_(max_rows),
      max_logit_rows_(max_logit_rows),
      recording_(recording),
      store_(store),
      prefetch_(prefetch),
      workspace_(backend, config, max_rows, max_logit_rows, recording),
      costs_(store),
      rope_(backend, config.rope, max_positions, weights.vision ? max_rows : 0),
      max_positions_(max_positions) {
  if (config.window_rope) window_rope_.emplace(backend, *config.window_rope, max_positions);
  num_moe_layers_ = config.num_moe_layers();
  for (int64_t l = 0; l < config.num_layers; ++l)
    if (config.layers[size_t(l)].moe)
      experts_.push_back(store ? backend.expert_table(*store, int64_t(experts_.size()))
                               : backend.expert_table(weights.layers[size_t(l)].experts));
  if (recording.router_logits && backend.host_memory() && num_moe_layers_ > 1)
    next_router_ = std::make_unique<NextRouter>(backend, config, weights, max_rows);
  StepLimits limits;
  limits.max_rows = max_rows;
  limits.max_logit_rows = max_logit_rows;
  limits.hidden_size = config.hidden_size;
  limits.num_heads = config.num_heads;
  limits.max_columns =
      std::max({config.hidden_size, config.num_heads * std::max(config.head_dim, config.v_head_dim), config.q_lora_rank});
  limits.max_columns = std::max({limits.max_columns, config.delta.values(), config.mamba.values()});
  for (const LayerConfig& layer : config.layers) {
    const KvShape kv = kv_shape(config, layer);
    if (kv.num_heads > 0) limits.num_kv_heads = limits.num_kv_heads ? std::min(limits.num_kv_heads, kv.num_heads) : kv.num_heads;
    limits.head_dim = std::max(limits.head_dim, kv.head_dim);
    limits.v_head_dim = std::max(limits.v_head_dim, kv.v_head_dim);
    limits.max_columns = std::max(limits.max_columns, config.num_heads * kv.v_head_dim);
  }
  limits.num_experts = config.num_experts;
  limits.top_k = config.num_experts_per_tok;
  limits.expert_width = num_moe_layers_ > 0 ? config.moe_intermediate_size : 0;
  limits.mlp_width = std::max(config.has_dense_mlp() ? config.intermediate_size : 0, config.shared_expert_width);
  limits.num_moe_layers = num_moe_layers_;
  limits.vocab_size = config.vocab_size;
  if (weights.vision) limits.tower = VisionTower::limits(*config.vision);
  backend.reserve(limits);
}

void Decoder::forward(const BatchView& batch, const KvCache& cache, const LayerSelections& selections, const MoeObserver& observe,
                      std::span<const StateView> states, const ImageRows& images) {
  if (batch.num_rows > max_rows_) invalid("num_rows", "expected at most ", max_rows_, ", got ", batch.num_rows);
  if (batch.num_page_groups != cache.num_groups())
    invalid("num_page_groups", "expected ", cache.num_groups(), " as the cache has, got ", batch.num_page_groups);
  if (batch.num_rows > 0) {
    int64_t last = *std::max_element(batch.positions, batch.positions + batch.num_rows);
    if (last >= max_positions_) invalid("positions", "expected less than ", max_positions_, ", got ", last);
    rope_.extend(last + 1);
    if (window_rope_) window_rope_->extend(last + 1);
  }
  if (!images.runs.empty()) rope_.compose(images.positions, config_.mrope_section);
  const int64_t num_deepstack = images.runs.empty() ? 0 : int64_t(config_.vision->deepstack.size());
  auto layers = [&](const BatchView& rows) {
    backend_.embed(weights_.embed, rows.token_ids, rows.num_rows, workspace_.x.get(), config_.embedding_multiplier);
    set_image_rows(images, 0, false);
    size_t moe = 0;
    PendingSum pending;  // what the layer before still has to add to x
    for (int64_t l = 0; l < config_.num_layers; ++l) {
      const LayerWeights& w = weights_.layers[size_t(l)];
      const LayerConfig& layer = config_.layers[size_t(l)];
      if (layer.mixer != MixerKind::kNone)
        mixer_block(w, layer, cache.num_groups() > 1 ? rows.with_pages(cache.group(l)) : rows, cache.layer(l),
                    states.empty() ? StateView{} : states[size_t(l)], std::move(pending));
      if (layer.mlp && layer.moe) {
        Selection selection = selections.layers.empty() ? Selection{} : selections.layers[moe];
        if (rows.isolated) selection.resident = 0;
        if (rows.replayed) selection.replay = rows.replayed + int64_t(moe) * rows.num_rows * config_.num_experts_per_tok;
        if (config_.sandwich_norms)
          sandwich_moe_block(w, rows, selection, int64_t(moe), observe);
        else if (config_.output_norms)
          output_normed_moe_block(w, rows, selection, int64_t(moe), observe);
        else
          pending = moe_block(w, rows, selection, int64_t(moe), observe, std::move(pending));
        ++moe;
      } else if (layer.mlp) {
        config_.sandwich_norms ? sandwich_mlp_block(w, rows) : mlp_block(w, rows, std::move(pending));
      }
      if (l < num_deepstack) {
        backend_.combine(std::move(pending));
        set_image_rows(images, (1 + l) * config_.hidden_size, true);
      }
    }
    backend_.combine(std::move(pending));
  };
  const BatchView rows = backend_.begin_step(batch);
  num_rows_ = batch.num_rows;
  padded_rows_ = rows.num_rows;
  backend_.run({selections.text, cache.data()}, rows, std::ref(layers));
}

void Decoder::set_image_rows(const ImageRows& images, int64_t first_column, bool accumulate) {
  for (const ImageRows::Run& run : images.runs)
    backend_.set_rows(run.output + first_column, config_.vision->out_columns(), run.num_rows, config_.hidden_size, accumulate,
                      workspace_.x.get() + run.first_row * config_.hidden_size);
}

void Decoder::norm(const float* x, const WeightView& weight, const WeightView& bias, int64_t num_rows, PendingSum pending) {
  lynx_rt::norm(backend_, config_, x, weight, bias, num_rows, workspace_.normed, std::move(pending));
}

void Decoder::mixer_block(const LayerWeights& w, const LayerConfig& layer, const BatchView& batch, const KvCacheView& cache,
                          const StateView& states, PendingSum pending) {
  float* x = workspace_.x.get();
  const int64_t num_rows = batch.num_rows;
  const Activations raw(x, num_rows, config_.hidden_size);
  if (!config_.output_norms) norm(x, w.input_norm, w.input_norm_bias, num_rows, std::move(pending));
  const RopeTable rope = layer.window > 0 && window_rope_ ? window_rope_->table() : rope_.table();
  const bool normed_out = config_.sandwich_norms || config_.output_norms;
  float* out = normed_out ? workspace_.branch.get() : x;
  const MixerStep step{backend_, config_, layer, workspace_, config_.output_norms ? raw : workspace_.normed, rope, batch,
                       cache,    states,  out,   !normed_out};
  std::visit(
      [&](const auto& mixer) {
        if constexpr (!std::is_same_v<std::decay_t<decltype(mixer)>, std::monostate>) mix(mixer, step);
      },
      w.mixer);
  if (normed_out) backend_.add_rmsnorm(out, w.sandwich.attention_out, config_.rms_norm_eps, num_rows, true, x);
}

void Decoder::logits(std::span<const int32_t> rows, float* out) {
  if (int64_t(rows.size()) > max_logit_rows_) invalid("rows", "expected at most ", max_logit_rows_, ", got ", rows.size());
  float* gathered = workspace_.logit_rows.get();
  backend_.gather_rows(workspace_.x.get(), rows, config_.hidden_size, gathered);
  norm(gathered, weights_.final_norm, weights_.final_norm_bias, int64_t(rows.size()));
  backend_.logits(workspace_.normed, weights_.lm_head, weights_.lm_head_bias, config_.logits_multiplier, out, config_.soft_cap);
}

void Decoder::end_step(std::span<SelectionStats> stats) {
  backend_.end_step(stats);
  for (size_t moe = 0; moe < stats.size(); ++moe)
    backend_.charge(Backend::kExpertFfn, stats[moe].active * experts_[moe][0].bytes());
}

// Copies [MoE layers, padded rows, width] to [rows, MoE layers, width] in host memory.
template <class T>
void Decoder::read_layers(const T* from, int64_t width, std::vector<T>& out) {
  std::vector<T> read(size_t(num_moe_layers_ * padded_rows_ * width));
  backend_.read(read.data(), from, int64_t(read.size() * sizeof(T)));
  out.resize(size_t(num_rows_ * num_moe_layers_ * width));
  for (int64_t l = 0; l < num_moe_layers_; ++l)
    for (int64_t t = 0; t < num_rows_; ++t)
      std::copy_n(read.data() + (l * padded_rows_ + t) * width, width, out.data() + (t * num_moe_layers_ + l) * width);
}

void Decoder::read_routed_experts(std::vector<int32_t>& out) {
  if (!recording_.routed_experts) fail(ErrorCode::kInternal, "", "routed experts are not recorded");
  read_layers(workspace_.ids.get(), config_.num_experts_per_tok, out);
}

void Decoder::read_router_logits(std::vector<float>& out) {
  if (!recording_.router_logits) fail(ErrorCode::kInternal, "", "router logits are not recorded");
  read_layers(workspace_.scores.get(), config_.num_experts, out);
}

void Decoder::read_next_logits(std::vector<float>& out) {
  const int64_t width = config_.num_experts, layers = num_moe_layers_ - 1;
  out.clear();
  if (!next_router_ || layers < 1) return;
  out.resize(size_t(num_rows_ * layers * width));
  for (int64_t l = 0; l < layers; ++l)
    for (int64_t t = 0; t < num_rows_; ++t)
      std::copy_n(next_logits_.data() + (l * num_rows_ + t) * width, width, out.data() + (t * layers + l) * width);
}

void Decoder::read_choice_bias(std::vector<float>& out) {
  for (const LayerWeights& layer : weights_.layers) {
    if (layer.choice_bias.empty()) continue;
    const size_t begin = out.size();
    out.resize(begin + size_t(config_.num_experts));
    backend_.read(out.data() + begin, layer.choice_bias.data, config_.num_experts * int64_t(sizeof(float)));
  }
}

}  // namespace lynx_rt
