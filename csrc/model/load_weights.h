// From a checkpoint to the backend: weights are bound (or made up), then placed.
#pragma once
#include <functional>

#include "checkpoint/safetensors.h"
#include "model/model_config.h"
#include "model/model_weights.h"

namespace lynx_rt {

// When load_weights() reads values that cannot be used in place, those of quantised checkpoints above all.
enum class ReadCopies : uint8_t { kNow, kWhenPlaced, kNever };
// Binds all weights of a checkpoint, in place where that is possible; layers are sized from the config, and those that the file
// has beyond them are left out. Experts of one layer whose dtypes differ are converted to the model's. The checkpoint must
// outlive what is not read now. Test: tests/model/test_odd_checkpoints.py.
void load_weights(const ModelConfig& config, const Checkpoint& checkpoint, ModelWeights& weights,
                  ReadCopies when = ReadCopies::kNow);
// Makes up weights for measurements of speed (checkpoint/dummy.h); `shared` is dummy_weights()'s.
void load_dummy_weights(const ModelConfig& config, bool shared, ModelWeights& weights);

// Bytes of all weights; an output projection that is the embedding counts once.
int64_t weight_bytes(const ModelWeights& weights);

// Called as weights are placed, with the bytes done and the bytes there are.
using Progress = std::function<void(int64_t done, int64_t total)>;
// Brings all weights to the backend, which on the CPU leaves plain ones where they are. Copies of values that the backend took
// elsewhere are released. `progress` may be empty.
void place_weights(Backend& backend, ModelWeights& weights, const Progress& progress);

}  // namespace lynx_rt
