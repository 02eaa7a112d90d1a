// What a user should know about a loaded checkpoint.
#pragma once
#include <string>
#include <vector>

namespace lynx_rt {

struct LoadNotes {
  std::vector<std::string> warnings;  // where the files contradict config.json or each other, and what was believed
  std::vector<std::string> not_used;  // what the files hold beside the weights, such as scales of a KV cache
};

}  // namespace lynx_rt
