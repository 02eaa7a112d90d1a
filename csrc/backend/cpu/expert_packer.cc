#include "backend/cpu/expert_packer.h"

#include "backend/cpu/cpu_backend.h"

namespace lynx_rt {

namespace {

BackendOptions options(const std::string& quantization, int num_threads) {
  BackendOptions o;
  o.device = "cpu";
  o.num_threads = num_threads;
  o.quantization = parse_quantization(quantization);
  return o;
}

}  // namespace

ExpertPacker::ExpertPacker(const std::string& quantization, int num_threads)
    : backend_(std::make_unique<CpuBackend>(options(quantization, num_threads))) {}

ExpertPacker::~ExpertPacker() = default;

ExpertWeights ExpertPacker::pack(const ExpertWeights& expert) {
  backend_->release_placed();
  ExpertWeights packed = expert;
  backend_->place_experts({&packed, 1});
  return packed;
}

}  // namespace lynx_rt
