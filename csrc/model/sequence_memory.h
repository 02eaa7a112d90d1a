// What a layer keeps of a sequence between steps; its mixer decides.
#pragma once
#include <cstdint>
#include <vector>

#include "base/types.h"
#include "model/model_config.h"

namespace lynx_rt {

struct SequenceMemory {
  enum Kind : uint8_t {
    kPages,  // grows with the sequence, in pages of tokens that sequences of the same prefix share: KvCache
    kState,  // of constant size, however long the sequence is; each sequence has its own
  };
  Kind kind;
  int64_t bytes;  // kPages: of one token; kState: of one sequence, 0 where a layer keeps nothing
};
// `dtype` is that of the values in pages: the backend's compute dtype. States are float32.
SequenceMemory sequence_memory(const ModelConfig& config, int64_t layer, DType dtype);
// Returns the bytes of each layer's state of one sequence, [num_layers]; 0 where the layer has pages.
std::vector<int64_t> state_bytes(const ModelConfig& config, DType dtype);

// The shape of one token's K and V in the pages of a layer.
struct KvShape {
  int64_t num_heads;   // G
  int64_t head_dim;    // D of K
  int64_t v_head_dim;  // Dv of V
  bool v_in_k;         // V is the first Dv columns of K and has no pages
  int64_t columns() const { return num_heads * (head_dim + (v_in_k ? 0 : v_head_dim)); }
};
// Returns the shape for a layer; empty for one without pages.
KvShape kv_shape(const ModelConfig& config, const LayerConfig& layer);

}  // namespace lynx_rt
