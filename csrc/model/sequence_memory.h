// What a layer keeps of a sequence between steps; its mixer decides.
#pragma once
#include <algorithm>
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

// Layers whose rows see the same keys keep the same pages of a sequence: they share a page table.
struct PageGroup {
  int64_t window = 0, chunk = 0;  // as LayerConfig has them; both 0 = rows see all keys before them
  int64_t bytes_per_token = 0;    // K and V in all layers of the group

  bool keeps_all() const { return window == 0 && chunk == 0; }
  // The first key that the row at `position` sees, and so does no row after it see an earlier one.
  int64_t first_key(int64_t position) const {
    return std::max({int64_t{0}, window > 0 ? position - window + 1 : 0, chunk > 0 ? position / chunk * chunk : 0});
  }
  // The most keys that a row sees, itself included, of a sequence of `len` tokens.
  int64_t span(int64_t len) const { return std::min({len, window > 0 ? window : len, chunk > 0 ? chunk : len}); }
};
struct PageGroups {
  std::vector<PageGroup> groups;  // [0] keeps all pages, even where no layer is in it
  std::vector<int32_t> of_layer;  // [num_layers] index in `groups`; 0 for a layer without pages
};
// Returns the groups of a model's layers for sequences of at most `max_len` tokens. A window that holds as many is none.
PageGroups page_groups(const ModelConfig& config, DType dtype, int64_t max_len);

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
