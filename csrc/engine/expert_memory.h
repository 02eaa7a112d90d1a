// The options expert_file and expert_memory: where experts come from, and how much memory they get.
#pragma once
#include <cstdint>
#include <memory>
#include <string>

#include "checkpoint/safetensors.h"
#include "lynx_rt/engine.h"
#include "model/model_config.h"
#include "tiers/expert_file.h"

namespace lynx_rt {

// Returns the memory of all experts of a file, each in a slot of the same size.
int64_t bytes_of_all(const ExpertFile& file);

// Returns a file of EngineOptions::quantization_cache, which must not be empty: its name says which weights it is made of, and how.
std::string cached_file(const EngineOptions& options, const ModelConfig& config, const Checkpoint& checkpoint,
                        const char* ending);

// Whether the expert file is one of quantization_cache's, made when it is not there.
bool makes_expert_file(const EngineOptions& options, const ModelConfig& config);

// Opens EngineOptions::expert_file, or makes it in quantization_cache of the model at `path`; null where experts come from the checkpoint.
// host_memory: Backend::host_memory(), without which there is no expert file (kUnsupported).
// Throws kInvalidArgument (fields expert_file, expert_memory) where one option lacks the other, or another one contradicts them; the
// errors of ExpertFile and pack_experts().
std::shared_ptr<const ExpertFile> open_expert_file(const std::string& path, const EngineOptions& options,
                                                   const ModelConfig& config, const Checkpoint& checkpoint, bool host_memory);

}  // namespace lynx_rt
