// The experts of a model one after the other, in the form that the CPU backend gives them.
#pragma once
#include <memory>
#include <string>

#include "base/expert_weights.h"

namespace lynx_rt {

class CpuBackend;

class ExpertPacker {
 public:
  // quantization, num_threads: as in EngineOptions.
  ExpertPacker(const std::string& quantization, int num_threads);
  ~ExpertPacker();
  // Returns the expert as Backend::place_experts() would, bit by bit. Valid until the next call, and as long as `expert` is.
  ExpertWeights pack(const ExpertWeights& expert);

 private:
  std::unique_ptr<CpuBackend> backend_;
};

}  // namespace lynx_rt
