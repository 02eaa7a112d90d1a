// Compares each function of ptx.cuh and runtime.h with its definition, lane by lane: here the emulation's functions, and on a GPU
// (tests/gpu) the hardware's. test_emulator.cc tests what only the emulation does.
#include <backend/cuda/runtime/launch.h>  // <> takes the files of the include path, not those beside this one
#include <backend/cuda/runtime/ptx.cuh>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "base/types.h"
#include "check.h"
#include "device_array.h"

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
    std::vector<uint32_t> in(32);
    for (int l = 0; l < 32; ++l) in[l] = mix(l + mask);
    const DeviceVector<uint32_t> device_in(in), out(kFunctions * 32);
    launch(collectives_kernel, 1, 32, 0, {}, device_in.get(), mask, out.get());
    const std::vector<uint32_t> got = out.read();

    uint32_t set = 0, most = 0, least = 0xffffffff, sum = 0, first = in[std::countr_zero(mask)];
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
      CHECK_EQ(result(11), std::bit_cast<uint32_t>(float(l ^ 16)));
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
  const DeviceVector<uint16_t> device_in(in);
  const DeviceVector<uint32_t> device_out(8 * 32);
  launch(load_matrix_kernel, 1, 32, 512, {}, device_in.get(), device_out.get());
  const std::vector<uint32_t> out = device_out.read();
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

std::vector<float> multiply(const std::vector<uint16_t>& a, const std::vector<uint16_t>& b, const std::vector<float>& c) {
  const DeviceVector<uint16_t> device_a(a), device_b(b);
  const DeviceVector<float> device_c(c);
  launch(mma_kernel, 1, 32, 0, {}, device_a.get(), device_b.get(), device_c.get());
  return device_c.read();
}

void test_mma() {
  // Small integers are exact in bf16 and in the sums.
  const auto number = [](uint32_t i) { return float(int(mix(i) % 17) - 8); };
  std::vector<uint16_t> a(256), b(128);
  std::vector<float> c(128), want(128);
  for (int i = 0; i < 256; ++i) a[i] = lynx_rt::f32_to_bf16(number(i));
  for (int i = 0; i < 128; ++i) b[i] = lynx_rt::f32_to_bf16(number(1000 + i)), c[i] = number(2000 + i);
  for (int row = 0; row < 16; ++row)
    for (int column = 0; column < 8; ++column) {
      float sum = c[row * 8 + column];
      for (int k = 0; k < 16; ++k) sum += number(row * 16 + k) * number(1000 + k * 8 + column);
      want[row * 8 + column] = sum;
    }
  CHECK(multiply(a, b, c) == want);

  // Numbers of all sizes, whose products are exact. Each of the 17 terms may be cut (not rounded) to a unit in the last place of the
  // largest, and so may the sums of the two halves of K and the result: 20 * 2^-23 * sum |terms|.
  const auto wide = [&](uint32_t i) { return std::ldexp(number(i), int(mix(7 * i + 1) % 24) - 12); };
  for (int i = 0; i < 256; ++i) a[i] = lynx_rt::f32_to_bf16(wide(i));
  for (int i = 0; i < 128; ++i) b[i] = lynx_rt::f32_to_bf16(wide(1000 + i)), c[i] = wide(2000 + i) / 3;
  std::vector<float> got = multiply(a, b, c);
  for (int row = 0; row < 16; ++row)
    for (int column = 0; column < 8; ++column) {
      double sum = c[row * 8 + column], size = std::abs(sum);
      for (int k = 0; k < 16; ++k) {
        const double term = double(wide(row * 16 + k)) * wide(1000 + k * 8 + column);
        sum += term;
        size += std::abs(term);
      }
      CHECK(std::abs(got[row * 8 + column] - sum) <= 20 * std::ldexp(size, -23));
    }

  // NaN and infinity reach the elements of their row or column and no other.
  a[3 * 16 + 5] = lynx_rt::f32_to_bf16(std::nanf(""));
  b[2 * 8 + 6] = 0x7f80;  // infinity
  for (int row = 0; row < 16; ++row) a[row * 16 + 2] = lynx_rt::f32_to_bf16(row == 9 ? -2.0f : 1.0f);
  got = multiply(a, b, c);
  for (int row = 0; row < 16; ++row)
    for (int column = 0; column < 8; ++column) {
      const float v = got[row * 8 + column];
      if (row == 3) {
        CHECK(std::isnan(v));
      } else if (column == 6) {
        CHECK_EQ(v, (row == 9 ? -1 : 1) * std::numeric_limits<float>::infinity());
      } else {
        CHECK(std::isfinite(v));
      }
    }
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
  std::vector<float> in(4 * 64 * 4);
  for (int i = 0; i < 1024; ++i) in[i] = float(mix(i) % 1000);
  const DeviceVector<float> device_in(in), device_out(64 + 256);
  launch(copies_kernel, 1, 64, in.size() * sizeof(float), {}, device_in.get(), device_out.get());
  const std::vector<float> out = device_out.read();
  for (int t = 0; t < 64; ++t) {
    const int from = (63 - t) * 4;
    CHECK_EQ(out[t], in[from] + in[256 + from] + in[512 + from]);
    float last[4] = {};
    std::memcpy(last, in.data() + 768 + 4 * t, t % 17);
    CHECK(std::memcmp(last, &out[64 + 4 * t], 16) == 0);
  }
}

__global__ void loads_kernel(const Words4* in, Words4* out) {
  const int t = int(threadIdx.x);
  out[3 * t] = load_once(in + (t ^ 21));
  out[3 * t + 1] = load_16(in + (t ^ 42));
  const Words2 two = load_once_8(reinterpret_cast<const Words2*>(in) + (t ^ 7));
  out[3 * t + 2] = {two.x, two.y, 0, 0};
}

void test_loads() {
  std::vector<Words4> in(64);
  for (uint32_t i = 0; i < 64; ++i) in[i] = {mix(4 * i), mix(4 * i + 1), mix(4 * i + 2), mix(4 * i + 3)};
  const DeviceVector<Words4> device_in(in), device_out(192);
  launch(loads_kernel, 1, 64, 0, {}, device_in.get(), device_out.get());
  const std::vector<Words4> out = device_out.read();
  for (int t = 0; t < 64; ++t) {
    CHECK(std::memcmp(&out[3 * t], &in[t ^ 21], 16) == 0);
    CHECK(std::memcmp(&out[3 * t + 1], &in[t ^ 42], 16) == 0);
    CHECK(std::memcmp(&out[3 * t + 2], reinterpret_cast<const Words2*>(in.data()) + (t ^ 7), 8) == 0);
  }
}

// Warps 0 and 1 exchange data over a named barrier, without warp 2. The shared memory is more than kDefaultSharedBytes.
__global__ void barriers_kernel(uint32_t* out) {
  uint32_t* shared = reinterpret_cast<uint32_t*>(dynamic_shared()) + blockIdx.x * 4096;
  uint32_t* mine = out + blockIdx.x * blockDim.x;
  shared[threadIdx.x] = 7;
  sync_block();
  shared[threadIdx.x] = threadIdx.x + 100 * blockIdx.x;
  if (warp_id() < 2) {
    sync_named(1, 64);
    mine[threadIdx.x] = shared[63 - threadIdx.x];
  } else {
    mine[threadIdx.x] = shared[threadIdx.x];
  }
}

void test_barriers() {
  const DeviceVector<uint32_t> device_out(5 * 96);
  launch(barriers_kernel, 5, 96, 96 * 1024, {}, device_out.get());
  const std::vector<uint32_t> out = device_out.read();
  for (uint32_t block = 0; block < 5; ++block)
    for (uint32_t t = 0; t < 96; ++t) CHECK_EQ(out[block * 96 + t], (t < 64 ? 63 - t : t) + 100 * block);
}

__global__ void atomics_kernel(uint32_t* out, uint32_t* tickets) {
  atomic_or(&out[0], 1u << lane_id());
  atomic_add(&out[1], threadIdx.x);
  atomic_min(&out[2], 1000 - threadIdx.x);
  tickets[atomic_fetch_add(&out[4], 1)] = threadIdx.x + blockIdx.x * blockDim.x;
  if (threadIdx.x == 0 && blockIdx.x == 0) out[3] = uint32_t(count_bits(0xf0f0)) + 100 * uint32_t(lowest_bit(0x80));
}

void test_atomics() {
  const DeviceVector<uint32_t> out(std::vector<uint32_t>{0, 0, 0xffffffff, 0, 0}), tickets(512);
  launch(atomics_kernel, 2, 256, 0, {}, out.get(), tickets.get());
  CHECK_EQ(out.read(), (std::vector<uint32_t>{0xffffffff, 2 * 255 * 128, 745, 708, 512}));
  std::vector<uint32_t> drawn = tickets.read(), all(512);
  std::sort(drawn.begin(), drawn.end());
  for (uint32_t i = 0; i < 512; ++i) all[i] = i;
  CHECK(drawn == all);  // each thread has a number of its own
}

// --- numbers

struct Numbers {
  float back, exp, accurate_exp;
  float from_half;
  uint32_t pair, halves, fma;
  uint16_t bf16;
};

__global__ void numbers_kernel(const float* in, int count, Numbers* out) {
  const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= count) return;
  const float v = in[i];
  Numbers n;
  n.bf16 = to_bf16(v);
  n.back = from_bf16(n.bf16);
  n.pair = to_bf16x2(v, in[(i + 1) % count]);
  n.halves = to_f16x2(v, in[(i + 1) % count]);
  n.from_half = from_f16(uint16_t(i));
  n.fma = fma_bf16x2(n.pair, 0x3fc04060u, 0x80008000u);  // times 3.5 and 1.5, less 0
  n.exp = fast_exp(v);
  n.accurate_exp = accurate_exp(v);
  out[i] = n;
}

void test_numbers() {
  const float infinity = std::numeric_limits<float>::infinity(), most = std::numeric_limits<float>::max();
  std::vector<float> in = {0.0f, -0.0f, 1.0f,   -1.0f,   infinity, -infinity, std::nanf(""),
                           most, -most, 1e-40f, -1e-45f, 88.0f,    -103.0f,   -87.0f};
  for (const uint32_t bits : {0x3f808000u, 0x3f818000u, 0x3f808001u, 0x3f807fffu, 0x7f7f8000u, 0x00008000u, 0x00018000u})
    in.push_back(std::bit_cast<float>(bits));  // ties and their neighbours, the largest that do not round to infinity, subnormals
  for (uint32_t i = 0; i < 4000; ++i) in.push_back(std::bit_cast<float>(mix(i)));
  for (uint32_t i = 0; i < 4000; ++i) in.push_back((float(mix(i) % 20001) - 10000) / 115);  // -87 to 87
  const int count = int(in.size());
  const DeviceVector<float> device_in(in);
  const DeviceVector<Numbers> device_out(in.size());
  launch(numbers_kernel, unsigned(count + 127) / 128, 128, 0, {}, device_in.get(), count, device_out.get());
  const std::vector<Numbers> out = device_out.read();

  // A NaN must stay a NaN; its payload may differ.
  const auto same = [](uint16_t got, float v) {
    return std::isnan(v) ? std::isnan(lynx_rt::bf16_to_f32(got)) : got == lynx_rt::f32_to_bf16(v);
  };
  const auto same_half = [](uint16_t got, float v) {
    return std::isnan(v) ? std::isnan(lynx_rt::f16_to_f32(got)) : got == lynx_rt::f32_to_f16(v);
  };
  int wrong = 0, wrong_half = 0, wrong_exp = 0;
  for (int i = 0; i < count; ++i) {
    const float low = lynx_rt::bf16_to_f32(uint16_t(out[i].pair)), high = lynx_rt::bf16_to_f32(uint16_t(out[i].pair >> 16));
    wrong += !same(uint16_t(out[i].fma), low * 3.5f) || !same(uint16_t(out[i].fma >> 16), high * 1.5f);
    wrong_half += !same_half(uint16_t(out[i].halves), in[i]) || !same_half(uint16_t(out[i].halves >> 16), in[(i + 1) % count]);
    const float half = lynx_rt::f16_to_f32(uint16_t(i));
    wrong_half += std::isnan(half) ? !std::isnan(out[i].from_half) : std::memcmp(&half, &out[i].from_half, 4) != 0;
    const float v = in[i], next = in[(i + 1) % count], back = lynx_rt::bf16_to_f32(out[i].bf16);
    wrong += !same(out[i].bf16, v) || !same(uint16_t(out[i].pair), v) || !same(uint16_t(out[i].pair >> 16), next) ||
             std::memcmp(&out[i].back, &back, 4) != 0;
    // __expf: 2 + 1.173 |v| units in the last place (CUDA programming guide, "intrinsic functions"). Results below the least
    // normal number may be flushed to 0.
    const double want = std::exp(double(v)), least = std::numeric_limits<float>::min();
    if (std::isnan(v) || !(want <= most)) {
      for (const float e : {out[i].exp, out[i].accurate_exp}) wrong_exp += std::isnan(v) ? !std::isnan(e) : e < most / 2;
    } else {
      wrong_exp +=
          !(std::abs(out[i].exp - want) <= want * std::ldexp(2 + 1.173 * std::min(200.0, std::abs(double(v))), -23) + least);
      // expf: 1 ulp; the emulation adds the host's rounding.
      wrong_exp += !(std::abs(out[i].accurate_exp - want) <= want * std::ldexp(1.5, -23) + std::ldexp(1.5, -149));
      wrong_exp += v == 0 && out[i].accurate_exp != 1;
    }
  }
  CHECK_EQ(wrong, 0);
  CHECK_EQ(wrong_half, 0);
  CHECK_EQ(wrong_exp, 0);
}

// --- runtime.h: order of what is queued, overlapping launches, graphs

__global__ void chain_kernel(uint32_t* values, int count) {
  grid_wait();
  grid_launch_dependents();
  for (int i = int(threadIdx.x); i < count; i += int(blockDim.x)) {
    const int from = count - 1 - i;  // written by another thread of the last launch
    values[count + i] = values[from] + 1;
  }
}
__global__ void chain_back_kernel(uint32_t* values, int count) {
  grid_wait();
  grid_launch_dependents();
  for (int i = int(threadIdx.x); i < count; i += int(blockDim.x)) values[i] = values[2 * count - 1 - i];
}

// Runs pairs of launches that add 1 to each of `count` numbers; each launch reads what other threads of the last one wrote.
void test_order() {
  const DeviceProperties device = device_properties(0);
  const uint32_t count = 5000;
  const auto numbers = [&](uint32_t slope, uint32_t pairs) {  // the numbers, and the result of the first launch of a pair
    std::vector<uint32_t> v(2 * count);
    for (uint32_t i = 0; i < count; ++i) v[i] = v[2 * count - 1 - i] = slope * i + pairs;
    return v;
  };
  for (const bool dependent : {false, true}) {
    if (dependent && device.major < 9) continue;
    const OwnedStream owned = make_stream();
    const Stream stream{owned.get(), dependent};
    const DeviceVector<uint32_t> values(numbers(3, 0));
    const auto chain = [&] {
      for (int i = 0; i < 21; ++i) {
        launch(chain_kernel, 1, 256, 0, stream, values.get(), int(count));
        launch(chain_back_kernel, 1, 256, 0, stream, values.get(), int(count));
      }
    };
    Event begin, end;
    begin.record(stream);
    chain();
    end.record(stream);
    end.wait();
    CHECK(Event::elapsed(begin, end) >= 0);
    CHECK(values.read() == numbers(3, 21));

    const Graph graph = Graph::capture(stream, chain);
    CHECK(values.read() == numbers(3, 21));  // recorded, not run
    for (int i = 0; i < 3; ++i) graph.launch(stream);
    synchronize(stream);
    CHECK(values.read() == numbers(3, 84));
    fill_async(values.get(), 0, 2 * count * sizeof(uint32_t), stream);
    graph.launch(stream);
    synchronize(stream);
    CHECK(values.read() == numbers(0, 21));
  }
}

}  // namespace

int main() {
  test_collectives();
  test_load_matrix();
  test_mma();
  test_copies();
  test_loads();
  test_barriers();
  test_atomics();
  test_numbers();
  test_order();
  return check::result("test_simt");
}
