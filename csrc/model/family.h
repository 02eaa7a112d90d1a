// The interface of model families, and their lookup. A family translates config keys and tensor names, nothing else.
#pragma once
#include <string>
#include <vector>

#include "checkpoint/config.h"
#include "checkpoint/weights.h"
#include "model/model_config.h"
#include "model/model_weights.h"

namespace lynx_rt {

// A model family. Each file of families/ provides one as `const Family& <file name>_family()`; the build finds the files.
struct Family {
  const char* model_type;
  ModelConfig (*read_config)(const ConfigReader& config);
  // States which tensors fill which slots, in the layout (per expert, fused, transposed) that the checkpoint has.
  std::vector<TensorSpec> (*specs)(const ModelConfig& config, const Checkpoint& checkpoint, ModelWeights& weights);
  std::vector<std::string> ignored_tensors;  // patterns of bind_weights()
};

// Throws kUnsupported listing the supported model types.
const Family& find_family(const std::string& model_type);
std::vector<std::string> supported_model_types();

// Reads <path>/config.json (path: a model folder) through its family. Throws kUnsupported for a model that would be computed
// wrongly, naming the key. Where the config states no dtype, the tensors' dtype is taken. `unread` receives the keys that nothing
// read.
ModelConfig read_model_config(const std::string& path, std::vector<std::string>* unread = nullptr);

}  // namespace lynx_rt
