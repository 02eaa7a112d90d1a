// The options expert_file and expert_memory: where experts come from, and how much memory they get.
#pragma once
#include <cstdint>
#include <memory>
#include <string>

#include "lynx_rt/engine.h"
#include "tiers/expert_file.h"

namespace lynx_rt {

// Returns the bytes that EngineOptions::expert_memory asks for. `all`: bytes of all experts; `chosen`: for "auto". Throws
// kInvalidArgument (field expert_memory).
int64_t parse_expert_memory(const std::string& text, int64_t all, int64_t chosen);

// Returns the memory of all experts of a file, each in a slot of the same size.
int64_t bytes_of_all(const ExpertFile& file);

// Opens EngineOptions::expert_file; null where there is none. Throws kInvalidArgument (field expert_file, expert_memory) where one option
// lacks the other, or another one contradicts them; the errors of ExpertFile.
std::shared_ptr<const ExpertFile> open_expert_file(const EngineOptions& options);

}  // namespace lynx_rt
