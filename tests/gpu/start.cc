// Linked into every program of tests/gpu and bench/gpu, whose main() the linker calls __real_main (--wrap=main): before it, ends the
// program where there is no GPU that this build has code for. Not in a static initialiser: those of the kernels' files, which tell
// the CUDA runtime what kernels there are, may come after it. tests/simt/test_start.py holds it to that order.
#include <cstdio>
#include <string>

#include "backend/cuda/runtime/runtime.h"
#include "base/error.h"

extern "C" int __real_main(int argc, char** argv);

namespace {

std::string why_not() {
  std::string why;
  if (lynx_rt::cuda::device_count(&why) == 0) return why;
  try {
    lynx_rt::cuda::check_architecture(lynx_rt::cuda::device_properties(0));
  } catch (const lynx_rt::Error& e) {
    return e.what();
  }
  return "";
}

}  // namespace

extern "C" int __wrap_main(int argc, char** argv) {
  const std::string why = why_not();
  if (why.empty()) return __real_main(argc, argv);
  std::fprintf(stderr, "this program runs on a GPU only: %s\n", why.c_str());
  return 77;  // "skipped", to ctest and automake
}
