// make_backend() of a build without CUDA; CMake picks one registry_*.cc.
#include "backend/backend.h"
#include "backend/cpu/cpu_backend.h"

namespace lynx_rt {

std::unique_ptr<Backend> make_backend(const BackendOptions& options) {
  if (options.device == "auto" || options.device == "cpu") return std::make_unique<CpuBackend>(options);
  if (options.device == "cuda" || options.device.starts_with("cuda:"))
    fail(ErrorCode::kUnsupported, "device", "device: \"", options.device,
         "\" is not in this build, which has the CPU backend only; build it with LYNX_RT_CUDA=on");
  invalid("device", "expected \"auto\", \"cpu\", \"cuda\" or \"cuda:N\", got \"", options.device, "\"");
}

std::string describe_cuda() { return "no: built without CUDA"; }

}  // namespace lynx_rt
