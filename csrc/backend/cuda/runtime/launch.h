// launch(), through which every kernel is launched. A host-compiler build puts tests/simt first on the include path and gets the
// emulated launch() from there, so that kernels and launchers run on the CPU unchanged. Nothing here has run on a GPU yet.
#pragma once
#include <cuda_runtime.h>

#include <cstddef>

#include "backend/cuda/runtime/runtime.h"
#include "base/error.h"

namespace lynx_rt::cuda {

using Dim3 = dim3;

// Shared memory that a block gets without a kernel attribute (CUDA programming guide, "shared memory": 48 KB on every architecture).
inline constexpr size_t kDefaultSharedBytes = 48 * 1024;

// Throws kDevice naming `what` and the runtime's own text.
inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) fail(ErrorCode::kDevice, what, what, ": ", cudaGetErrorString(status));
}

// Queues kernel(args...) on `stream` with `shared_bytes` of dynamic shared memory. Throws where the launch is refused; a fault
// inside the kernel shows at a later call. The arguments are converted to the kernel's own parameter types.
template <class... Params, class... Args>
void launch(void (*kernel)(Params...), Dim3 grid, Dim3 block, size_t shared_bytes, Stream stream, const Args&... args) {
  if (shared_bytes > kDefaultSharedBytes)
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_bytes)), "shared memory");
  cudaLaunchAttribute dependent = {};
  dependent.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  dependent.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream.handle;
  config.attrs = &dependent;
  config.numAttrs = stream.dependent_launch ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel, Params(args)...), "kernel launch");
}

}  // namespace lynx_rt::cuda
