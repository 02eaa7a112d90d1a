// Writes the experts of a checkpoint to a file of their own (tiers/expert_file.h): `lynx-rt pack`.
#pragma once
#include <cstdint>
#include <string>

#include "model/load_weights.h"

namespace lynx_rt {

struct PackOptions {
  std::string quantization = "none";  // as in EngineOptions
  int num_threads = 0;
  Progress on_progress;  // bytes of records; an exception from it ends the work and leaves no file
};

struct PackedExperts {
  int64_t num_layers = 0;  // with experts
  int64_t num_records = 0;
  int64_t record_bytes = 0;  // of the largest
  int64_t file_bytes = 0;
};

// Returns the bytes that an expert takes in a file.
int64_t record_bytes(const ExpertWeights& expert, QuantFormat quantization);

// Reads one expert after the other, in the memory of one layer's at most: a fused tensor that has to be decoded is decoded as a whole.
// Throws the errors of opening and loading the model; kUnsupported for a model without experts; kInvalidArgument (field output) where the
// file cannot be written. Test: tests/cpp/test_pack_experts.cc, tests/python/test_cli_pack.py.
PackedExperts pack_experts(const std::string& path, const std::string& output, const PackOptions& options);

}  // namespace lynx_rt
