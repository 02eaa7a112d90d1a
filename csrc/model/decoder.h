// A decoder-only model over a backend: walks the layers over one step's flat rows. Knows no requests and no device.
#pragma once
#include <algorithm>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "model/expert_prefetch.h"
#include "model/image_rows.h"
#include "model/kv_cache.h"
#include "model/model_weights.h"
#include "model/next_router.h"
#include "model/rope_rows.h"
#include "model/workspace.h"
#include "tiers/virtual_cache.h"

namespace lynx_rt {

// The expert selection of each MoE layer.
struct LayerSelections {
  std::string text = "topk";      // the selection's canonical text, with the files of its tables
  std::vector<Selection> layers;  // one per MoE layer; empty: the model's own routing everywhere

  // Whether a layer may change the routing of a step.
  bool acts(Phase phase, int64_t rows) const {
    return std::any_of(layers.begin(), layers.end(), [&](const Selection& s) { return lynx_rt::acts(s, phase, rows); });
  }
};

// The input of an MoE layer's experts, in the backend's memory.
struct MoeInput {
  int64_t layer;  // index among the MoE layers
  int64_t num_rows;
  const float* x;      // [T, H]
  const int32_t* ids;  // [T, k]
  const ExpertTable& experts;
};
// Called before the experts run. It may call ops on memory of its own.
using MoeObserver = std::function<void(const MoeInput&)>;

// Thread-safety: one call at a time.
class Decoder {
 public:
  // max_rows bounds BatchView::num_rows, max_logit_rows one logits() call, max_positions the rope table. `store`: has the experts
  // where not all of them are in memory; `prefetch`: guesses for it, may be null.
  Decoder(Backend& backend, const ModelConfig& config, const ModelWeights& weights, int64_t max_rows, int64_t max_logit_rows,
          int64_t max_positions, StepRecording recording = {}, ExpertStore* store = nullptr, ExpertPrefetch* prefetch = nullptr);

  // Routing sees what experts cost in `cache`, and in decode-only steps tells it what it used; null = no cache. The owner ends the
  // cache's steps.
  void set_cache(VirtualCache* cache) {
    cache_ = cache;
    if (cache) costs_ = cache;
  }
  // Starts a step and runs all layers: writes the rows' K and V, leaves the final hidden states in the workspace. `observe` is
  // called in each MoE layer; it is for prefill, since a backend may repeat a recorded decode step without calling it.
  // `states`: of each layer; empty where no layer has any. `images`: rows that stand for images, in batches that are not decode-only, with
  // their BatchView::rope_rows.
  void forward(const BatchView& batch, const KvCache& cache, const LayerSelections& selections, const MoeObserver& observe = {},
               std::span<const StateView> states = {}, const ImageRows& images = {});
  int64_t first_image_rope_row() const { return max_positions_; }
  // Computes the final norm and the output projection of rows of the last forward(): out [rows.size(), V] in the backend's
  // memory.
  void logits(std::span<const int32_t> rows, float* out);
  // Ends the step; `stats` has one entry per MoE layer and is overwritten. Throws RowError as Backend::end_step() does.
  void end_step(std::span<SelectionStats> stats);
  // The uses of experts in the last step, [MoE layers, E]: kWanted by some row's own routing, kRead after selection. Empty before the first
  // step, and on devices, which keep the routing to themselves.
  enum Use : uint8_t { kWanted = 1, kRead = 2 };
  std::span<const uint8_t> expert_uses() const { return uses_; }
  // Copy what was recorded of the step that ended last to host memory: the rows' experts [rows, MoE layers, k], and their router
  // logits [rows, MoE layers, E].
  void read_routed_experts(std::vector<int32_t>& out);
  void read_router_logits(std::vector<float>& out);
  void read_choice_bias(std::vector<float>& out);  // from the weights: [MoE layers, E]
  // Copies what NextRouter said of the rows of a decode-only step: [rows, MoE layers - 1, E] router logits of the layers from the second
  // on; nothing where the backend does not work in host memory. Where router logits are recorded.
  void read_next_logits(std::vector<float>& out);

  const ModelConfig& config() const { return config_; }
  int64_t num_moe_layers() const { return num_moe_layers_; }
  int64_t max_rows() const { return max_rows_; }
  int64_t max_logit_rows() const { return max_logit_rows_; }
  int64_t workspace_bytes() const { return workspace_.bytes(); }

 private:
  // Adds `pending` to x, then writes the normed rows to the workspace.
  void norm(const float* x, const WeightView& weight, const WeightView& bias, int64_t num_rows, PendingSum pending = {});
  // Adds or sets columns [first_column, first_column + H) of the tower's output in the rows of images.
  void set_image_rows(const ImageRows& images, int64_t first_column, bool accumulate);
  void mixer_block(const LayerWeights& w, const LayerConfig& layer, const BatchView& batch, const KvCacheView& cache,
                   const StateView& states, PendingSum pending);
  // Blocks of experts or an MLP: moe_block.cc.
  PendingSum moe_block(const LayerWeights& w, const BatchView& batch, const Selection& selection, int64_t moe_layer,
                       const MoeObserver& observe, PendingSum pending);
  void mlp_block(const LayerWeights& w, const BatchView& batch, PendingSum pending);
  void sandwich_moe_block(const LayerWeights& w, const BatchView& batch, const Selection& selection, int64_t moe_layer,
                          const MoeObserver& observe);
  void output_normed_moe_block(const LayerWeights& w, const BatchView& batch, const Selection& selection, int64_t moe_layer,
                               const MoeObserver& observe);
  void sandwich_mlp_block(const LayerWeights& w, const BatchView& batch);
  // The experts of a step's rows in one layer.
  struct Routed {
    int64_t moe_layer;
    const ExpertTable& experts;
    RouterRule rule;
    FfnRule ffn;
    Routing routing;
    DispatchPlan plan;
    ExpertStore::Lease lease;
  };
  // Scores the rows [T, H] and chooses their experts, which are then being read where they are not in memory.
  Routed route_rows(const LayerWeights& w, const float* rows, const BatchView& batch, const Selection& selection,
                    int64_t moe_layer);

  template <class T>
  void read_layers(const T* from, int64_t width, std::vector<T>& out);

  Backend& backend_;
  const ModelConfig& config_;
  const ModelWeights& weights_;
  int64_t max_rows_, max_logit_rows_, num_moe_layers_ = 0;
  StepRecording recording_;
  ExpertStore* store_;
  ExpertPrefetch* prefetch_;
  int64_t num_rows_ = 0, padded_rows_ = 0;  // of the last step, and the number to which the backend padded them
  Workspace workspace_;
  std::vector<ExpertTable> experts_;  // [MoE layers]
  VirtualCache* cache_ = nullptr;
  const RoutingCosts* costs_;       // the store or the cache; null: all experts cost the same
  std::vector<int32_t> wanted_;     // [E] experts of a layer's own routing
  std::vector<float> wanted_mass_;  // [E] their gate mass, where there are costs
  std::vector<uint8_t> uses_;       // [MoE layers, E] bits of Use
  std::unique_ptr<NextRouter> next_router_;
  std::vector<float> next_logits_;  // [MoE layers - 1, rows, E]
  RopeRows rope_;
  std::optional<RopeRows> window_rope_;  // of ModelConfig::window_rope
  int64_t max_positions_;
};

}  // namespace lynx_rt
