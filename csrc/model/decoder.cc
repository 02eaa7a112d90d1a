#include "model/decoder.h"

#include <algorithm>
#include <cmath>
#include <functional>

namespace lynx_rt {

namespace {

constexpr int64_t kRopeRows = 64;  // added at a time

}  // namespace

int64_t KvCache::bytes_per_block(const ModelConfig& m, DType dtype, int64_t block_size) {
  int64_t per_token = checked_mul(m.cache_columns(), dtype_size(dtype), "kv_cache");
  return checked_mul(checked_mul(per_token, m.num_layers, "kv_cache"), block_size, "kv_cache");
}

KvCache::KvCache(Backend& backend, const ModelConfig& m, int64_t num_blocks, int64_t block_size)
    : num_blocks_(num_blocks), block_size_(block_size) {
  const DType dtype = backend.compute_dtype();
  const int64_t values = checked_mul(num_blocks, block_size * m.cache_heads(), "kv_cache");
  const auto pages = [&](int64_t width) {
    memory_.emplace_back(backend, checked_mul(values, width * dtype_size(dtype), "kv_cache"), "kv_cache");
    return memory_.back().get();
  };
  for (int64_t l = 0; l < m.num_layers; ++l) {
    void* k = pages(m.cache_head_dim());
    void* v = m.mla() ? nullptr : pages(m.cache_v_dim());
    views_.push_back({k, v, dtype, num_blocks, block_size, m.cache_heads(), m.cache_head_dim(), m.cache_v_dim()});
  }
}

int64_t KvCache::bytes() const {
  int64_t sum = 0;
  for (const auto& a : memory_) sum += a.bytes();
  return sum;
}

Decoder::Decoder(Backend& backend, const ModelConfig& config, const ModelWeights& weights, int64_t max_rows,
                 int64_t max_logit_rows, int64_t max_positions, StepRecording recording)
    : backend_(backend),
      config_(config),
      weights_(weights),
      max_rows_(max_rows),
      max_logit_rows_(max_logit_rows),
      recording_(recording),
      workspace_(backend, config, max_rows, max_logit_rows, recording),
      max_positions_(max_positions) {
  num_moe_layers_ = config.num_moe_layers();
  for (int64_t l = 0; l < config.num_layers; ++l)
    if (config.layers[size_t(l)].moe) experts_.push_back(backend.expert_table(weights.layers[size_t(l)].experts));
  const int64_t half = config.rope.dim / 2;
  rope_cos_ = DeviceArray<float>(backend, checked_mul(max_positions, half, "rope"), "rope");
  rope_sin_ = DeviceArray<float>(backend, checked_mul(max_positions, half, "rope"), "rope");
  rope_angles_ = rope_angles(config.rope, max_positions);
  new_cos_.resize(size_t(kRopeRows * half));
  new_sin_.resize(size_t(kRopeRows * half));

  StepLimits limits;
  limits.max_rows = max_rows;
  limits.max_logit_rows = max_logit_rows;
  limits.hidden_size = config.hidden_size;
  limits.num_heads = config.num_heads;
  limits.num_kv_heads = config.cache_heads();
  limits.head_dim = config.cache_head_dim();
  limits.v_head_dim = config.cache_v_dim();
  limits.max_columns = std::max({config.hidden_size, config.num_heads * std::max(config.head_dim, config.cache_v_dim()),
                                 config.num_heads * config.v_head_dim, config.q_lora_rank});
  limits.num_experts = config.num_experts;
  limits.top_k = config.num_experts_per_tok;
  limits.expert_width = num_moe_layers_ > 0 ? config.moe_intermediate_size : 0;
  limits.mlp_width = std::max(num_moe_layers_ < config.num_layers ? config.intermediate_size : 0, config.shared_expert_width);
  limits.num_moe_layers = num_moe_layers_;
  limits.vocab_size = config.vocab_size;
  backend.reserve(limits);
}

// Rows are computed when a position is first reached: a long context that nobody uses costs neither time nor memory.
// Frequencies and angles in float32, as transformers computes them: at large positions the rounding of the angle is
// larger than any tolerance, so parity needs the same rounding.
void Decoder::extend_rope(int64_t num_positions) {
  const int64_t half = int64_t(rope_angles_.inverse.size());
  while (rope_positions_ < num_positions) {
    int64_t count = std::min(kRopeRows, max_positions_ - rope_positions_);
    for (int64_t p = 0; p < count; ++p) {
      for (int64_t i = 0; i < half; ++i) {
        double angle = double(float(rope_positions_ + p) * rope_angles_.inverse[size_t(i)]);
        new_cos_[size_t(p * half + i)] = float(std::cos(angle)) * rope_angles_.factor;
        new_sin_[size_t(p * half + i)] = float(std::sin(angle)) * rope_angles_.factor;
      }
    }
    backend_.write(rope_cos_.get() + rope_positions_ * half, new_cos_.data(), count * half * int64_t(sizeof(float)));
    backend_.write(rope_sin_.get() + rope_positions_ * half, new_sin_.data(), count * half * int64_t(sizeof(float)));
    rope_positions_ += count;
  }
}

void Decoder::forward(const BatchView& batch, const KvCache& cache, const LayerSelections& selections,
                      const MoeObserver& observe) {
  if (batch.num_rows > max_rows_) invalid("num_rows", "expected at most ", max_rows_, ", got ", batch.num_rows);
  if (batch.num_rows > 0) {
    int64_t last = *std::max_element(batch.positions, batch.positions + batch.num_rows);
    if (last >= max_positions_) invalid("positions", "expected less than ", max_positions_, ", got ", last);
    extend_rope(last + 1);
  }
  auto layers = [&](const BatchView& rows) {
    backend_.embed(weights_.embed, rows.token_ids, rows.num_rows, workspace_.x.get(), config_.embedding_multiplier);
    size_t moe = 0;
    PendingSum pending;  // of the layer before
    for (int64_t l = 0; l < config_.num_layers; ++l) {
      const LayerWeights& w = weights_.layers[size_t(l)];
      const LayerConfig& layer = config_.layers[size_t(l)];
      attention_block(w, layer, rows, cache.layer(l), std::move(pending));
      if (!layer.moe) {
        mlp_block(w, rows);
        continue;
      }
      Selection selection = selections.layers.empty() ? Selection{} : selections.layers[moe];
      if (rows.replayed) selection.replay = rows.replayed + int64_t(moe) * rows.num_rows * config_.num_experts_per_tok;
      pending = moe_block(w, rows, selection, int64_t(moe), observe);
      ++moe;
    }
    backend_.combine(std::move(pending));
  };
  const BatchView rows = backend_.begin_step(batch);
  num_rows_ = batch.num_rows;
  padded_rows_ = rows.num_rows;
  backend_.run({selections.text, cache.layer(0).k}, rows, std::ref(layers));
}

void Decoder::logits(std::span<const int32_t> rows, float* out) {
  if (int64_t(rows.size()) > max_logit_rows_) invalid("rows", "expected at most ", max_logit_rows_, ", got ", rows.size());
  float* gathered = workspace_.logit_rows.get();
  backend_.gather_rows(workspace_.x.get(), rows, config_.hidden_size, gathered);
  norm(gathered, weights_.final_norm, weights_.final_norm_bias, int64_t(rows.size()));
  backend_.logits(workspace_.normed, weights_.lm_head, weights_.lm_head_bias, config_.logits_multiplier, out);
}

void Decoder::end_step(std::span<SelectionStats> stats) {
  backend_.end_step(stats);
  for (size_t moe = 0; moe < stats.size(); ++moe) {
    const ExpertWeights& w = experts_[moe][0];
    backend_.charge(Backend::kExpertFfn, stats[moe].active * (w.gate.bytes() + w.up.bytes() + w.down.bytes()));
  }
}

// From [MoE layers, padded rows, width] to [rows, MoE layers, width].
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

void Decoder::read_choice_bias(std::vector<float>& out) {
  for (const LayerWeights& layer : weights_.layers) {
    if (layer.choice_bias.empty()) continue;
    const size_t begin = out.size();
    out.resize(begin + size_t(config_.num_experts));
    backend_.read(out.data() + begin, layer.choice_bias.data, config_.num_experts * int64_t(sizeof(float)));
  }
}

}  // namespace lynx_rt
