#include "model/decoder.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace lynx_rt {

int64_t KvCache::bytes_per_block(const ModelConfig& m, DType dtype, int64_t block_size) {
  int64_t per_token = checked_mul(m.num_kv_heads * m.head_dim, dtype_size(dtype), "kv_cache");
  return checked_mul(checked_mul(per_token, 2 * m.num_layers, "kv_cache"), block_size, "kv_cache");
}

KvCache::KvCache(Backend& backend, const ModelConfig& m, int64_t num_blocks, int64_t block_size)
    : num_blocks_(num_blocks), block_size_(block_size) {
  DType dtype = backend.compute_dtype();
  int64_t bytes = checked_mul(bytes_per_block(m, dtype, block_size) / (2 * m.num_layers), num_blocks, "kv_cache");
  for (int64_t l = 0; l < m.num_layers; ++l) {
    memory_.emplace_back(backend, bytes, "kv_cache");
    memory_.emplace_back(backend, bytes, "kv_cache");
    views_.push_back({memory_[size_t(2 * l)].get(), memory_[size_t(2 * l + 1)].get(), dtype, num_blocks, block_size,
                      m.num_kv_heads, m.head_dim});
  }
}

int64_t KvCache::bytes() const {
  int64_t sum = 0;
  for (const auto& a : memory_) sum += a.bytes();
  return sum;
}

Decoder::Decoder(Backend& backend, const ModelConfig& config, const ModelWeights& weights, int64_t max_rows,
                 int64_t max_logit_rows, int64_t max_positions)
    : backend_(backend),
      config_(config),
      weights_(weights),
      max_rows_(max_rows),
      max_logit_rows_(max_logit_rows),
      workspace_(backend, config, max_rows, max_logit_rows) {
  for (bool moe : config.moe_layer) num_moe_layers_ += moe;
  int64_t half = config.head_dim / 2;
  rope_cos_ = DeviceArray<float>(backend, checked_mul(max_positions, half, "rope"), "rope");
  rope_sin_ = DeviceArray<float>(backend, checked_mul(max_positions, half, "rope"), "rope");
  for (int64_t i = 0; i < half; ++i)
    rope_inverse_.push_back(1.0f / std::pow(config.rope_theta, float(2 * i) / float(config.head_dim)));
}

// Rows are computed when a position is first reached: a long context that nobody uses costs neither time nor memory.
// Frequencies and angles in float32, as transformers computes them: at large positions the rounding of the angle is
// larger than any tolerance, so parity needs the same rounding.
void Decoder::extend_rope(int64_t num_positions) {
  int64_t half = int64_t(rope_inverse_.size());
  for (; rope_positions_ < num_positions; ++rope_positions_) {
    for (int64_t i = 0; i < half; ++i) {
      double angle = double(float(rope_positions_) * rope_inverse_[size_t(i)]);
      rope_cos_.get()[rope_positions_ * half + i] = float(std::cos(angle));
      rope_sin_.get()[rope_positions_ * half + i] = float(std::sin(angle));
    }
  }
}

void Decoder::forward(const BatchView& batch, const KvCache& cache, const Selection& selection, std::span<SelectionStats> stats) {
  if (batch.num_rows > max_rows_) invalid("num_rows", "expected at most ", max_rows_, ", got ", batch.num_rows);
  if (batch.num_rows > 0) extend_rope(1 + *std::max_element(batch.positions, batch.positions + batch.num_rows));
  backend_.embed(weights_.embed, batch.token_ids, batch.num_rows, workspace_.x.get());
  size_t moe = 0;
  for (int64_t l = 0; l < config_.num_layers; ++l) {
    const LayerWeights& w = weights_.layers[size_t(l)];
    attention_block(w, batch, cache.layer(l));
    if (config_.moe_layer[size_t(l)]) {
      moe_block(w, batch, selection, stats.empty() ? nullptr : &stats[moe]);
      ++moe;
    } else {
      mlp_block(w, batch);
    }
  }
}

void Decoder::logits(std::span<const int32_t> rows, float* out) {
  if (int64_t(rows.size()) > max_logit_rows_) invalid("rows", "expected at most ", max_logit_rows_, ", got ", rows.size());
  int64_t h = config_.hidden_size;
  for (size_t i = 0; i < rows.size(); ++i)
    std::memcpy(workspace_.logit_rows.get() + int64_t(i) * h, workspace_.x.get() + rows[i] * h, size_t(h) * 4);
  backend_.rmsnorm(workspace_.logit_rows.get(), weights_.final_norm, config_.rms_norm_eps, int64_t(rows.size()),
                   workspace_.logit_rows.get());
  backend_.logits(workspace_.logit_rows.get(), weights_.lm_head, int64_t(rows.size()), out);
}

}  // namespace lynx_rt
