// Files that say which experts stay in memory.
#pragma once
#include <cstdint>
#include <string>

#include "tiers/residency.h"

namespace lynx_rt {

// Reads the lists of expert_policy="static:file=PATH": a safetensors file with "experts", I32 [num_layers, n], the experts of each MoE
// layer, the most important first. Returns them as Residency takes them; it checks the numbers. Throws kInvalidArgument (field
// expert_policy), kNotFound, kCorruptFile. Writer: lynx_rt.research.tier_simulation.save_static().
ExpertHistory read_expert_lists(const std::string& file, int64_t num_layers);

}  // namespace lynx_rt
