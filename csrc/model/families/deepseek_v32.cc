// DeepSeek-V3.2: DeepSeek-V3 with sparse attention, which is dense up to index_topk tokens. Keys and names: transformers' deepseek_v32
// configuration and the hub's checkpoints.
#include "model/families/common/deepseek.h"

namespace lynx_rt {

namespace {

ModelConfig read_config(const ConfigReader& c) { return read_sparse_deepseek(c, 1e-6); }

}  // namespace

const Family& deepseek_v32_family() {
  static const Family family{"deepseek_v32", read_config, usual_specs, indexer_tensors()};
  return family;
}

}  // namespace lynx_rt
