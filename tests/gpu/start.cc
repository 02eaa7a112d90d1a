// Linked into every program of tests/gpu and bench/gpu: before main(), ends the program where there is no GPU that this build
// has code for.
#include <cstdio>
#include <cstdlib>
#include <string>

#include "backend/cuda/runtime.h"
#include "base/error.h"

namespace {

[[noreturn]] void refuse(const std::string& why) {
  std::fprintf(stderr, "this program runs on a GPU only: %s\n", why.c_str());
  std::exit(77);  // "skipped", to ctest and automake
}

const bool has_device = [] {
  std::string why;
  if (lynx_rt::cuda::device_count(&why) == 0) refuse(why);
  try {
    lynx_rt::cuda::check_architecture(lynx_rt::cuda::device_properties(0));
  } catch (const lynx_rt::Error& e) {
    refuse(e.what());
  }
  return true;
}();

}  // namespace
