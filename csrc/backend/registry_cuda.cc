// make_backend() of a build with CUDA; CMake picks one registry_*.cc.
#include "backend/backend.h"
#include "backend/cpu/cpu_backend.h"
#include "backend/cuda/cuda_backend.h"

namespace lynx_rt {

std::unique_ptr<Backend> make_backend(const BackendOptions& options) {
  BackendOptions chosen = options;
  if (options.device == "auto") {
    // The CUDA backend only computes in bfloat16, without quantisation; the CPU has the other dtypes and quantised weights.
    const bool cuda =
        options.compute_dtype == DType::kBF16 && options.quantization == QuantFormat::kPlain && cuda::device_count() > 0;
    chosen.device = cuda ? "cuda" : "cpu";
  }
  if (chosen.quantization != QuantFormat::kPlain && chosen.device != "cpu")
    fail(ErrorCode::kUnsupported, "quantization", "quantization: \"", quant_format_name(chosen.quantization),
         "\" is for device=\"cpu\", not ", chosen.device);
  if (chosen.device == "cpu") return std::make_unique<CpuBackend>(chosen);
  if (chosen.device.starts_with("cuda")) return std::make_unique<CudaBackend>(chosen);
  invalid("device", "expected \"auto\", \"cpu\", \"cuda\" or \"cuda:N\", got \"", options.device, "\"");
}

std::string describe_cuda() {
  std::string why;
  const int count = cuda::device_count(&why);
  if (count == 0) return "no device: " + why;
  std::string text;
  for (int i = 0; i < count; ++i) {
    const cuda::DeviceProperties p = cuda::device_properties(i);
    text += str_cat(i == 0 ? "" : "; ", "cuda:", i, " ", p.name, ", compute capability ", p.major, ".", p.minor, ", ",
                    p.total_memory >> 20, " MiB");
  }
  return text;
}

}  // namespace lynx_rt
