// Small kernels with one bug each, and their correct twins. They show which bugs each way of running finds, and that it reports no
// correct kernel.
//   planted_bugs           every case in every copy mode, FIFO and three seeds, against the table below
//   planted_bugs NAME bug|correct   one case as SIMT_COPY and SIMT_SEED say, for the sanitizers; prints its result
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "backend/cuda/runtime/launch.h"
#include "backend/cuda/runtime/ptx.cuh"
#include "check.h"

using namespace lynx_rt::cuda;

namespace {

constexpr int kThreads = 96;
constexpr int kSteps = 5;  // more steps than any pipeline below has stages
constexpr int kWords = 4;  // floats of one asynchronous copy

// in: [kSteps, kThreads, kWords]; out: [kThreads]
using Kernel = void (*)(const float* in, float* out);

__device__ float* shared_floats() { return reinterpret_cast<float*>(dynamic_shared()); }
__device__ int mirrored() { return kThreads - 1 - int(threadIdx.x); }

template <bool kBug>
__global__ void scatter_kernel(const float* in, float* out) {
  const int t = int(threadIdx.x);
  shared_floats()[t] = in[t];
  if (!kBug) sync_block();
  out[t] = shared_floats()[mirrored()];
}

template <bool kBug>
__global__ void warp_update_kernel(const float* in, float* out) {
  const int t = int(threadIdx.x);
  float* s = shared_floats();
  s[t] = in[t];
  sync_warp();
  const float neighbour = s[t ^ 1];
  if (!kBug) sync_warp();
  s[t] = neighbour + 1;
  out[t] = s[t];
}

// A case for ThreadSanitizer, which forgets an atomic write when its own thread reads the word right after, unless others run between.
template <bool kBug>
__global__ void atomic_kernel(const float* in, float* out) {
  const int t = int(threadIdx.x);
  uint32_t* word = reinterpret_cast<uint32_t*>(dynamic_shared()) + warp_id();
  if (lane_id() == 0) *word = 0;
  sync_warp();
  if (lane_id() == kWarpSize - 1) atomic_or(word, 1);
  if (!kBug) sync_warp();
  out[t] = in[t] + float(*word);
}

template <bool kBug>
__global__ void copy_then_read_kernel(const float* in, float* out) {
  const int t = int(threadIdx.x);
  copy_async_16(shared_floats() + t * kWords, in + t * kWords);
  copy_commit();
  copy_wait<0>();
  if (!kBug) sync_block();
  out[t] = shared_floats()[mirrored() * kWords];
}

template <bool kBug>
__global__ void reuse_kernel(const float* in, float* out) {
  const int t = int(threadIdx.x);
  float sum = 0;
  for (int step = 0; step < kSteps; ++step) {
    shared_floats()[t] = in[step * kThreads + t];
    sync_block();
    sum += shared_floats()[mirrored()];
    if (!kBug) sync_block();
  }
  out[t] = sum;
}

// Copies two stages ahead of the reader, in a ring of three. The bug leaves two groups in flight where the reader needs one of them.
template <bool kBug>
__global__ void short_wait_kernel(const float* in, float* out) {
  const int t = int(threadIdx.x);
  const auto fetch = [&](int step) {
    const int at = t * kWords;
    if (step < kSteps) copy_async_16(shared_floats() + step % 3 * kThreads * kWords + at, in + step * kThreads * kWords + at);
    copy_commit();
  };
  fetch(0);
  fetch(1);
  float sum = 0;
  for (int step = 0; step < kSteps; ++step) {
    copy_wait<kBug ? 2 : 1>();
    sync_block();
    sum += shared_floats()[(step % 3 * kThreads + mirrored()) * kWords];
    fetch(step + 2);
  }
  out[t] = sum;
}

// Uses a ring of two, where the barrier before fetch() keeps slower warps from reading the step after the next. A warp reads what the
// next warp has copied, and FIFO order happens to run that one later.
template <bool kBug>
__global__ void overwrite_kernel(const float* in, float* out) {
  const int t = int(threadIdx.x);
  const auto fetch = [&](int step) {
    const int at = t * kWords;
    if (step < kSteps) copy_async_16(shared_floats() + step % 2 * kThreads * kWords + at, in + step * kThreads * kWords + at);
    copy_commit();
  };
  const int from = t + kWarpSize < kThreads ? t + kWarpSize : t;
  fetch(0);
  fetch(1);
  float sum = 0;
  for (int step = 0; step < kSteps; ++step) {
    copy_wait<1>();
    sync_block();
    sum += shared_floats()[(step % 2 * kThreads + from) * kWords];
    if (!kBug) sync_block();
    fetch(step + 2);
  }
  out[t] = sum;
}

template <bool kBug>
__global__ void divergent_barrier_kernel(const float* in, float* out) {
  const int t = int(threadIdx.x);
  shared_floats()[t] = in[t];
  if (!kBug || lane_id() < 16) sync_block();
  out[t] = shared_floats()[kBug ? t : mirrored()];
}

template <bool kBug>
__global__ void divergent_shuffle_kernel(const float* in, float* out) {
  const int t = int(threadIdx.x);
  if (kBug && lane_id() == 5) sync_block();
  out[t] = in[shuffle(kFullWarp, t, lane_id())];
  if (!kBug || lane_id() != 5) sync_block();
}

template <bool kBug>
__global__ void exited_lane_kernel(const float* in, float* out) {
  const int t = int(threadIdx.x);
  if (kBug && lane_id() == 31) return;
  out[t] = in[shuffle(kFullWarp, t, lane_id())];
}

template <bool kBug>
__global__ void overrun_kernel(const float* in, float* out) {
  const int t = int(threadIdx.x);
  float* s = shared_floats() + kSteps * kThreads * kWords - kThreads;  // the last kThreads floats
  s[t + (kBug ? 1 : 0)] = in[t];
  sync_block();
  out[t] = s[t + (kBug ? 1 : 0)];
}

// The runs in which a wrong result or a fault must appear. Seeds: under at least one of the three.
enum Found { kNever, kAlways, kLazyOnly, kEagerSeedsOnly };

struct Case {
  const char* name;
  Kernel bug, correct;
  Found found;
  const char* report;  // text of the fault, null where the result is wrong
  float (*want)(const float* in, int t);
};

float at(const float* in, int step, int t, int words = 1) { return in[(step * kThreads + t) * words]; }
float own(const float* in, int t) { return in[t]; }
float mirror(const float* in, int t) { return in[kThreads - 1 - t]; }
float sum_of_steps(const float* in, int t, int words) {
  float sum = 0;
  for (int step = 0; step < kSteps; ++step) sum += at(in, step, t, words);
  return sum;
}

const Case kCases[] = {
    {"missing_sync_block", scatter_kernel<true>, scatter_kernel<false>, kAlways, nullptr, mirror},
    {"missing_sync_warp", warp_update_kernel<true>, warp_update_kernel<false>, kAlways, nullptr,
     [](const float* in, int t) { return in[t ^ 1] + 1; }},
    {"missing_sync_after_atomic", atomic_kernel<true>, atomic_kernel<false>, kAlways, nullptr,
     [](const float* in, int t) { return in[t] + 1; }},
    {"missing_barrier_after_copy", copy_then_read_kernel<true>, copy_then_read_kernel<false>, kAlways, nullptr,
     [](const float* in, int t) { return at(in, 0, kThreads - 1 - t, kWords); }},
    {"missing_barrier_before_reuse", reuse_kernel<true>, reuse_kernel<false>, kAlways, nullptr,
     [](const float* in, int t) { return sum_of_steps(in, kThreads - 1 - t, 1); }},
    {"short_wait", short_wait_kernel<true>, short_wait_kernel<false>, kLazyOnly, nullptr,
     [](const float* in, int t) { return sum_of_steps(in, kThreads - 1 - t, kWords); }},
    {"overwritten_stage", overwrite_kernel<true>, overwrite_kernel<false>, kEagerSeedsOnly, nullptr,
     [](const float* in, int t) { return sum_of_steps(in, t + kWarpSize < kThreads ? t + kWarpSize : t, kWords); }},
    {"divergent_barrier", divergent_barrier_kernel<true>, divergent_barrier_kernel<false>, kAlways, "divergent code", mirror},
    {"divergent_shuffle", divergent_shuffle_kernel<true>, divergent_shuffle_kernel<false>, kAlways, "deadlock", own},
    {"exited_lane", exited_lane_kernel<true>, exited_lane_kernel<false>, kAlways, "nothing: returned", own},
    {"shared_overrun", overrun_kernel<true>, overrun_kernel<false>, kNever, nullptr, own},
};

// Returns "ok", "wrong" or the text of the fault.
std::string run(const Case& c, bool bug) {
  struct alignas(16) Word {
    float v[kWords];
  };
  std::vector<Word> memory(kSteps * kThreads);
  float* in = memory[0].v;
  for (int i = 0; i < kSteps * kThreads * kWords; ++i) in[i] = float((i * 37 + i / 96) % 1009);
  std::vector<float> out(kThreads, -1.0f);
  try {
    launch(bug ? c.bug : c.correct, 1, kThreads, size_t(kSteps) * kThreads * kWords * sizeof(float), {}, in, out.data());
  } catch (const simt::Fault& e) {
    return e.what();
  }
  for (int t = 0; t < kThreads; ++t)
    if (!(out[t] == c.want(in, t))) return "wrong";  // NaN is wrong
  return "ok";
}

void run_all() {
  for (const Case& c : kCases)
    for (const simt::Copy copy : {simt::Copy::kLazy, simt::Copy::kEager}) {
      const bool lazy = copy == simt::Copy::kLazy;
      int found_by_seeds = 0, found_by_fifo = 0;
      for (const uint64_t seed : {0, 1, 2, 3}) {
        simt::options() = {copy, seed, 1};
        const std::string with_bug = run(c, true), correct = run(c, false);
        if (correct != "ok") std::cerr << c.name << ", correct, lazy " << lazy << ", seed " << seed << ": " << correct << "\n";
        CHECK_EQ(correct, std::string("ok"));
        if (c.report && with_bug.find(c.report) == std::string::npos) std::cerr << c.name << ": " << with_bug << "\n";
        if (c.report) CHECK(with_bug.find(c.report) != std::string::npos);
        (seed ? found_by_seeds : found_by_fifo) += with_bug != "ok";
      }
      const bool by_fifo = c.found == kAlways || (c.found == kLazyOnly && lazy);
      const bool by_seeds = by_fifo || (c.found == kEagerSeedsOnly && !lazy);
      if (bool(found_by_fifo) != by_fifo || bool(found_by_seeds) != by_seeds) std::cerr << c.name << ", lazy " << lazy << ":\n";
      CHECK_EQ(found_by_fifo > 0, by_fifo);
      CHECK_EQ(found_by_seeds > 0, by_seeds);
    }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 1) {
    run_all();
    return check::result("planted_bugs");
  }
  for (const Case& c : kCases)
    if (argc == 3 && std::string(c.name) == argv[1]) {
      std::cout << run(c, std::string(argv[2]) == "bug") << "\n";
      return 0;
    }
  std::cerr << "usage: planted_bugs [NAME bug|correct]\n";
  return 2;
}
