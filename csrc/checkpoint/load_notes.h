// What a user should know of a checkpoint that was loaded.
#pragma once
#include <string>
#include <vector>

namespace lynx_rt {

struct LoadNotes {
  std::vector<std::string> warnings;  // the files contradict config.json or each other, and which of them was believed
  std::vector<std::string> not_used;  // what the files hold beside the weights, such as scales of a KV cache
};

}  // namespace lynx_rt
