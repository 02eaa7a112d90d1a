// Loads weights from a checkpoint to the backend: they are bound (or made up), then placed.
#pragma once
#include <functional>

#include "checkpoint/safetensors.h"
#include "model/model_config.h"
#include "model/model_weights.h"

namespace lynx_rt {

// When load_weights() reads the values that cannot be used in place: above all those of quantised checkpoints.
enum class ReadCopies : uint8_t { kNow, kWhenPlaced, kNever };
// Backend::takes_blocks(); empty: no weight may be in blocks.
using TakesBlocks = std::function<bool(WeightUse, const BlockRows& rows)>;
// Binds all weights of a checkpoint, in place where that is possible. The config decides how many layers there are; further
// layers of the file are left out. Where the dtypes of one layer's experts differ, they are converted to the model's. The
// checkpoint must live as long as weights are used in place or are still to be read. `takes`: which quantised weights become views in
// blocks (checkpoint/block_tensor.h), instead of being decoded. Test: tests/model/test_odd_checkpoints.py.
void load_weights(const ModelConfig& config, const Checkpoint& checkpoint, ModelWeights& weights,
                  ReadCopies when = ReadCopies::kNow, const TakesBlocks& takes = {});
// Makes up weights for measurements of speed; `shared` as in dummy_weights() (checkpoint/dummy.h). Where the config says how weights are
// quantised, those of products are, as far as `takes` allows and the config does not exclude their modules.
void load_dummy_weights(const ModelConfig& config, bool shared, ModelWeights& weights, const TakesBlocks& takes = {});

// Bytes of all weights; an output projection that is the embedding counts once.
int64_t weight_bytes(const ModelWeights& weights);
// Bytes that weights will take on the CPU, for weights that are not placed yet.
int64_t weight_bytes_on_cpu(const ModelWeights& weights, QuantFormat quantization);
// Those of them whose data lies in a mapped file.
int64_t mapped_weight_bytes(const ModelWeights& weights, const std::function<bool(const void* data)>& is_mapped);

// Called as weights are placed, with the bytes done and the total.
using Progress = std::function<void(int64_t done, int64_t total)>;
// Places all weights in the backend's memory; the CPU backend leaves plain ones where they are. Releases the copies of values
// that the backend moved elsewhere. `progress` may be empty.
void place_weights(Backend& backend, ModelWeights& weights, const Progress& progress);

}  // namespace lynx_rt
