// Each function of ptx.cuh against its definition, lane by lane. On a GPU the same kernels would test the hardware's side.
#include "backend/cuda/ptx.cuh"

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "backend/cuda/launch.h"
#include "check.h"

using namespace lynx_rt::cuda;

namespace {

uint32_t mix(uint32_t x) {  // a number that looks random
  x = (x ^ 61) ^ (x >> 16);
  x *= 9;
  x ^= x >> 4;
  x *= 0x27d4eb2d;
  return x ^ (x >> 15);
}

// --- collectives of one warp: out[function][lane]

constexpr int kFunctions = 12;

__global__ void collectives_kernel(const uint32_t* in, uint32_t mask, uint32_t* out) {
  const int l = lane_id();
  if (!(mask >> l & 1)) return;
  const uint32_t v = in[l];
  const int partner = lowest_bit(mask);
  uint32_t result[kFunctions] = {shuffle(mask, v, partner),
                                 ballot(mask, v & 1),
                                 match_any(mask, v % 3),
                                 reduce_max(mask, v),
                                 reduce_min(mask, v),
                                 reduce_add(mask, v),
                                 uint32_t(shuffle(mask, uint64_t(v) << 32, partner) >> 32),
                                 0,
                                 0,
                                 0,
                                 0,
                                 0};
  if (mask == kFullWarp) {
    result[7] = shuffle_xor(mask, v, 5);
    result[8] = shuffle_up(mask, v, 3);
    result[9] = shuffle_down(mask, v, 3);
    result[10] = float_bits(shuffle(mask, bits_float(v), l + 1));
    result[11] = float_bits(float(shuffle_xor(mask, double(l), 16)));
  }
  for (int f = 0; f < kFunctions; ++f) out[f * kWarpSize + l] = result[f];
}

void test_collectives() {
  for (const uint32_t mask : {kFullWarp, 1u, 0x80000000u, 0x0f0f00f1u}) {
    std::vector<uint32_t> in(32), got(kFunctions * 32, 0);
    for (int l = 0; l < 32; ++l) in[l] = mix(l + mask);
    launch(collectives_kernel, 1, 32, 0, nullptr, in.data(), mask, got.data());

    uint32_t set = 0, most = 0, least = 0xffffffff, sum = 0, first = in[lowest_bit(mask)];
    for (int l = 0; l < 32; ++l) {
      if (!(mask >> l & 1)) continue;
      set |= (in[l] & 1) << l;
      most = std::max(most, in[l]);
      least = std::min(least, in[l]);
      sum += in[l];
    }
    for (int l = 0; l < 32; ++l) {
      if (!(mask >> l & 1)) continue;
      uint32_t same = 0;
      for (int other = 0; other < 32; ++other) same |= uint32_t((mask >> other & 1) && in[other] % 3 == in[l] % 3) << other;
      const auto result = [&](int f) { return got[f * 32 + l]; };
      CHECK_EQ(result(0), first);
      CHECK_EQ(result(1), set);
      CHECK_EQ(result(2), same);
      CHECK_EQ(result(3), most);
      CHECK_EQ(result(4), least);
      CHECK_EQ(result(5), sum);
      CHECK_EQ(result(6), first);
      if (mask != kFullWarp) continue;
      CHECK_EQ(result(7), in[l ^ 5]);
      CHECK_EQ(result(8), in[l >= 3 ? l - 3 : l]);
      CHECK_EQ(result(9), in[l < 29 ? l + 3 : l]);
      CHECK_EQ(result(10), in[(l + 1) % 32]);
      CHECK_EQ(result(11), float_bits(float(l ^ 16)));
    }
  }
}

// --- matrix fragments

__global__ void load_matrix_kernel(const uint16_t* in, uint32_t* out) {
  uint16_t* rows = reinterpret_cast<uint16_t*>(dynamic_shared());
  for (int i = lane_id(); i < 256; i += kWarpSize) rows[i] = in[i];
  sync_warp();
  uint32_t plain[4], transposed[4];
  load_matrix_x4(plain, rows + 8 * lane_id());
  load_matrix_x4_transposed(transposed, rows + 8 * lane_id());
  for (int m = 0; m < 4; ++m) {
    out[m * kWarpSize + lane_id()] = plain[m];
    out[(4 + m) * kWarpSize + lane_id()] = transposed[m];
  }
}

void test_load_matrix() {
  std::vector<uint16_t> in(256);
  for (int i = 0; i < 256; ++i) in[i] = uint16_t(mix(i));
  std::vector<uint32_t> out(8 * 32);
  launch(load_matrix_kernel, 1, 32, 512, nullptr, in.data(), out.data());
  for (int m = 0; m < 4; ++m)
    for (int row = 0; row < 8; ++row)
      for (int column = 0; column < 8; ++column) {
        // An element's lane is 4 * row + column / 2 and its half column % 2; transposed, the roles are swapped.
        const uint16_t element = in[m * 64 + row * 8 + column];
        CHECK_EQ(uint16_t(out[m * 32 + 4 * row + column / 2] >> 16 * (column % 2)), element);
        CHECK_EQ(uint16_t(out[(4 + m) * 32 + 4 * column + row / 2] >> 16 * (row % 2)), element);
      }
}

__global__ void mma_kernel(const uint16_t* a, const uint16_t* b, float* c) {  // [16, 16], [16, 8], [16, 8]
  const int g = lane_id() / 4, q = lane_id() % 4;
  const auto pair = [](uint16_t low, uint16_t high) { return low | uint32_t(high) << 16; };
  uint32_t fa[4], fb[2];
  float fc[4];
  for (int i = 0; i < 4; ++i) {
    const uint16_t* p = a + (g + 8 * (i % 2)) * 16 + 2 * q + 8 * (i / 2);
    fa[i] = pair(p[0], p[1]);
    fc[i] = c[(g + 8 * (i / 2)) * 8 + 2 * q + i % 2];
  }
  for (int i = 0; i < 2; ++i) fb[i] = pair(b[(2 * q + 8 * i) * 8 + g], b[(2 * q + 8 * i + 1) * 8 + g]);
  mma_bf16(fc, fa, fb);
  for (int i = 0; i < 4; ++i) c[(g + 8 * (i / 2)) * 8 + 2 * q + i % 2] = fc[i];
}

void test_mma() {
  // Small integers are exact in bf16 and in the sums; their bf16 is the upper half of their float32.
  const auto number = [](uint32_t i) { return float(int(mix(i) % 17) - 8); };
  const auto bf16 = [](float v) { return uint16_t(float_bits(v) >> 16); };
  std::vector<uint16_t> a(256), b(128);
  std::vector<float> c(128), want(128);
  for (int i = 0; i < 256; ++i) a[i] = bf16(number(i));
  for (int i = 0; i < 128; ++i) b[i] = bf16(number(1000 + i)), c[i] = number(2000 + i);
  for (int row = 0; row < 16; ++row)
    for (int column = 0; column < 8; ++column) {
      float sum = c[row * 8 + column];
      for (int k = 0; k < 16; ++k) sum += number(row * 16 + k) * number(1000 + k * 8 + column);
      want[row * 8 + column] = sum;
    }
  launch(mma_kernel, 1, 32, 0, nullptr, a.data(), b.data(), c.data());
  CHECK(c == want);
}

// --- asynchronous copies, barriers, shared memory

__global__ void copies_kernel(const float* in, float* out) {
  float* stage = reinterpret_cast<float*>(dynamic_shared());
  const int t = int(threadIdx.x);
  for (int i = 0; i < 4; ++i) {
    copy_async_16(stage + (i * 64 + t) * 4, in + (i * 64 + t) * 4, i == 3 ? t % 17 : 16);
    copy_commit();
  }
  copy_wait<1>();  // all but the last
  sync_block();
  float sum = 0;
  for (int i = 0; i < 3; ++i) sum += stage[(i * 64 + 63 - t) * 4];
  copy_wait<0>();
  out[t] = sum;
  for (int i = 0; i < 4; ++i) out[64 + 4 * t + i] = stage[(3 * 64 + t) * 4 + i];
}

void test_copies() {
  alignas(16) float in[4 * 64 * 4];
  for (int i = 0; i < 1024; ++i) in[i] = float(mix(i) % 1000);
  std::vector<float> out(64 + 256);
  launch(copies_kernel, 1, 64, sizeof in, nullptr, in, out.data());
  for (int t = 0; t < 64; ++t) {
    const int from = (63 - t) * 4;
    CHECK_EQ(out[t], in[from] + in[256 + from] + in[512 + from]);
    float last[4] = {};
    std::memcpy(last, in + 768 + 4 * t, t % 17);
    CHECK(std::memcmp(last, &out[64 + 4 * t], 16) == 0);
  }
}

// Warps 0 and 1 hand over through a named barrier; warp 2 is not in it. Blocks differ in their poisoned shared memory only.
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
    std::vector<uint32_t> out(5 * 96);
    launch(barriers_kernel, 5, 96, 96 * 4, nullptr, out.data());
    for (uint32_t block = 0; block < 5; ++block)
      for (uint32_t t = 0; t < 96; ++t) CHECK_EQ(out[block * 96 + t], t < 64 ? 63 - t + 100 * block : 0xffffffff);
  }
  simt::options().resident = 1;
}

__global__ void atomics_kernel(uint32_t* out) {
  atomic_or(&out[0], 1u << lane_id());
  atomic_add(&out[1], threadIdx.x);
  atomic_min(&out[2], 1000 - threadIdx.x);
  if (threadIdx.x == 0) out[3] = uint32_t(count_bits(0xf0f0)) + 100 * uint32_t(lowest_bit(0x80));
}

void test_atomics() {
  std::vector<uint32_t> out = {0, 0, 0xffffffff, 0};
  launch(atomics_kernel, 1, 256, 0, nullptr, out.data());
  CHECK_EQ(out, (std::vector<uint32_t>{0xffffffff, 255 * 128, 745, 708}));
}

// --- misuse ends in a report

template <class Kernel>
void faults(Kernel kernel, const std::string& part) {
  try {
    launch(kernel, 1, 64, 256, nullptr);
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
  test_barriers();  // a launch after a fault is as any other
}

}  // namespace

int main() {
  test_collectives();
  test_load_matrix();
  test_mma();
  test_copies();
  test_barriers();
  test_atomics();
  test_faults();
  return check::result("test_simt");
}
