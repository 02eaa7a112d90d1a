// Replaces csrc/backend/cuda/runtime/launch.h in host builds: launch() runs the grid at once, on fibers, or records it while the
// stream is captured (tests/simt/runtime_simt.cc).
#pragma once
#include <cstddef>
#include <functional>
#include <tuple>

#include "backend/cuda/runtime/runtime.h"
#include "simt.h"

namespace lynx_rt::cuda {

using Dim3 = simt::Dim3;

template <class... Params, class... Args>
void launch(void (*kernel)(Params...), Dim3 grid, Dim3 block, size_t shared_bytes, Stream, const Args&... args) {
  struct Invocation {
    void (*kernel)(Params...);
    std::tuple<Params...> params;
  };
  simt::queue([grid, block, shared_bytes, invocation = Invocation{kernel, {Params(args)...}}] {
    simt::run_grid(
        grid, block, shared_bytes,
        [](const void* p) {
          const Invocation& call = *static_cast<const Invocation*>(p);
          std::apply(call.kernel, call.params);
        },
        &invocation);
  });
}

}  // namespace lynx_rt::cuda
