#include "model/sequence_memory.h"

#include "base/error.h"

namespace lynx_rt {

KvShape kv_shape(const ModelConfig& m, const LayerConfig& layer) {
  switch (layer.mixer) {
    case MixerKind::kGqa: return {m.kv_heads_of(layer), m.head_dim_of(layer), m.head_dim_of(layer), false};
    // One head for all: the latent and the rotated columns are K, of which the latent is V.
    case MixerKind::kMla: return {1, m.kv_lora_rank + m.rope.dim, m.kv_lora_rank, true};
    case MixerKind::kGatedDelta:
    case MixerKind::kKda:
    case MixerKind::kMamba2:
    case MixerKind::kShortConv:
    case MixerKind::kNone: return {0, 0, 0, false};
  }
  fail(ErrorCode::kInternal, "mixer", "mixer: unknown kind ", int(layer.mixer));
}

SequenceMemory sequence_memory(const ModelConfig& m, int64_t layer, DType dtype) {
  const LayerConfig& of_layer = m.layers[size_t(layer)];
  const auto state = [](int64_t values) {
    return SequenceMemory{SequenceMemory::kState, checked_mul(values, int64_t(sizeof(float)), "states")};
  };
  switch (of_layer.mixer) {
    case MixerKind::kGqa:
    case MixerKind::kMla:
      return {SequenceMemory::kPages, checked_mul(kv_shape(m, of_layer).columns(), dtype_size(dtype), "kv_cache")};
    case MixerKind::kGatedDelta:
    case MixerKind::kKda: return state(m.delta.state_size());
    case MixerKind::kMamba2: return state(m.mamba.state_size());
    case MixerKind::kShortConv: return state((m.short_conv_width - 1) * m.hidden_size);
    case MixerKind::kNone: return state(0);
  }
  fail(ErrorCode::kInternal, "mixer", "mixer: unknown kind");
}

PageGroups page_groups(const ModelConfig& m, DType dtype, int64_t max_len) {
  PageGroups out{{PageGroup{}}, std::vector<int32_t>(size_t(m.num_layers), 0)};
  for (int64_t l = 0; l < m.num_layers; ++l) {
    const SequenceMemory memory = sequence_memory(m, l, dtype);
    if (memory.kind != SequenceMemory::kPages) continue;
    const LayerConfig& layer = m.layers[size_t(l)];
    const int64_t window = layer.window < max_len ? layer.window : 0, chunk = layer.chunk < max_len ? layer.chunk : 0;
    size_t g = 0;
    while (g < out.groups.size() && (out.groups[g].window != window || out.groups[g].chunk != chunk)) ++g;
    if (g == out.groups.size()) out.groups.push_back({window, chunk, 0});
    out.groups[g].bytes_per_token += memory.bytes;
    out.of_layer[size_t(l)] = int32_t(g);
  }
  return out;
}

std::vector<int64_t> state_bytes(const ModelConfig& m, DType dtype) {
  std::vector<int64_t> bytes(size_t(m.num_layers), 0);
  for (int64_t l = 0; l < m.num_layers; ++l)
    if (const SequenceMemory memory = sequence_memory(m, l, dtype); memory.kind == SequenceMemory::kState)
      bytes[size_t(l)] = memory.bytes;
  return bytes;
}

}  // namespace lynx_rt
