// Tests of the emulation beyond test_simt.cc: poisoned shared memory, blocks that run interleaved, and misuse that ends in a report
// where a GPU would hang or silently compute a wrong result.
#include <string>
#include <vector>

#include "backend/cuda/runtime/launch.h"
#include "backend/cuda/runtime/ptx.cuh"
#include "check.h"
#include "device_array.h"

using namespace lynx_rt::cuda;

namespace {

// Warps 0 and 1 exchange data over a named barrier, without warp 2. Blocks only differ in their poisoned shared memory.
__global__ void barriers_kernel(uint32_t* out) {
  uint32_t* shared = reinterpret_cast<uint32_t*>(dynamic_shared());
  uint32_t* mine = out + blockIdx.x * blockDim.x;
  const uint32_t before = shared[threadIdx.x];
  sync_block();
  shared[threadIdx.x] = threadIdx.x + 100 * blockIdx.x;
  if (warp_id() < 2) {
    sync_named(1, 64);
    mine[threadIdx.x] = shared[63 - threadIdx.x] + (before == 0xffffffff ? 0 : 1000000);
  } else {
    mine[threadIdx.x] = before;
  }
}

void test_barriers() {
  for (const int resident : {1, 3}) {
    simt::options().resident = resident;
    const DeviceVector<uint32_t> device_out(5 * 96);
    launch(barriers_kernel, 5, 96, 96 * 4, {}, device_out.get());
    const std::vector<uint32_t> out = device_out.read();
    for (uint32_t block = 0; block < 5; ++block)
      for (uint32_t t = 0; t < 96; ++t) CHECK_EQ(out[block * 96 + t], t < 64 ? 63 - t + 100 * block : 0xffffffff);
  }
  simt::options().resident = 1;
}

// --- misuse ends in a report

template <class Kernel>
void faults(Kernel kernel, const std::string& part) {
  try {
    launch(kernel, 1, 64, 256, {});
    CHECK(!"a fault was reported");
  } catch (const simt::Fault& e) {
    CHECK(std::string(e.what()).find(part) != std::string::npos);
    if (std::string(e.what()).find(part) == std::string::npos) std::cerr << e.what() << "\n";
  }
}

__global__ void wrong_mask_kernel() { ballot(0xffff0000, true); }
__global__ void different_masks_kernel() { ballot(lane_id() < 16 ? kFullWarp : kFullWarp ^ 1u, true); }
__global__ void different_calls_kernel() {
  if (lane_id() < 16) {
    ballot(kFullWarp, true);
  } else {
    reduce_add(kFullWarp, 1);
  }
}
__global__ void outside_mask_kernel() {
  if (lane_id() < 8) shuffle(0xffu, 1, 8);
}
__global__ void misaligned_kernel() { copy_async_16(dynamic_shared() + 4, dynamic_shared() + 16); }
__global__ void misaligned_row_kernel() {
  uint32_t out[4];
  load_matrix_x4(out, dynamic_shared() + 2 * lane_id());
}
__global__ void throwing_kernel() {
  if (threadIdx.x == 40) throw simt::Fault("thrown by thread 40");
  sync_block();
}

void test_faults() {
  faults(wrong_mask_kernel, "the lane is not in its mask 0xffff0000");
  faults(different_masks_kernel, "mask 0xfffffffe");
  faults(different_calls_kernel, "reduce_add of mask 0xffffffff");
  faults(outside_mask_kernel, "a lane reads a lane outside the mask");
  faults(misaligned_kernel, "not 16-byte aligned");
  faults(misaligned_row_kernel, "a row is not 16-byte aligned");
  faults(throwing_kernel, "thrown by thread 40");
  test_barriers();  // a launch after a fault must work as usual
}

}  // namespace

int main() {
  test_barriers();
  test_faults();
  return check::result("test_emulator");
}
