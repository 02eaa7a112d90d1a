#include "model/expert_lists.h"

#include <cstring>
#include <vector>

#include "base/error.h"
#include "checkpoint/safetensors.h"

namespace lynx_rt {

ExpertHistory read_expert_lists(const std::string& file, int64_t num_layers) {
  if (file.empty()) invalid("expert_policy", "expected static:file=PATH, a safetensors file with the table \"experts\"");
  const Checkpoint opened = Checkpoint::open(file);
  const TensorInfo& table = opened.at("experts");
  if (table.dtype != "I32" || table.shape.size() != 2 || table.shape[0] != num_layers)
    invalid("expert_policy", file, ": experts: expected I32 [", num_layers, ", any], got ", table.dtype, " ", table.shape);
  ExpertHistory lists;
  for (int64_t l = 0; l < num_layers; ++l) {
    std::vector<int32_t> experts(size_t(table.shape[1]));
    std::memcpy(experts.data(), table.data + size_t(l) * experts.size() * sizeof(int32_t), experts.size() * sizeof(int32_t));
    lists.push_back({std::move(experts)});
  }
  return lists;
}

}  // namespace lynx_rt
