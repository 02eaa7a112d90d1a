#include "backend/cpu/core_meter.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>
#include <vector>
#if defined(__x86_64__)
#include <emmintrin.h>
#endif

#include "backend/cpu/kernels/kernels.h"
#include "backend/cpu/scratch.h"
#include "base/clock.h"

namespace lynx_rt {

namespace {

constexpr double kArithmeticSeconds = 0.004;  // long enough for a sleeping core to reach its frequency

}  // namespace

double KernelMeter::arithmetic(int cpu) {
  constexpr int64_t kOut = 16, kRows = 8, kDepth = 1024;
  const cpu::GemmFn gemm = cpu::kernels_for(resolve_isa("")).gemm_f32[int(DType::kF32)];
  double rate = 0;
  std::thread([&] {
    if (CpuCalls::system().bind_thread({&cpu, 1}) != 0) return;
    const std::vector<float> w(kOut * kDepth, 0.5f), x(kRows * kDepth, 0.25f);
    std::vector<float> out(kOut * kRows);
    for (double start = now(), begin = start, end; begin - start < kArithmeticSeconds; begin = end) {
      constexpr int kTimes = 10;
      for (int i = 0; i < kTimes; ++i)
        gemm(w.data(), kDepth * 4, kOut, x.data(), kDepth * 4, kRows, kDepth, out.data(), kOut, false, nullptr);
      end = now();
      rate = std::max(rate, kTimes / std::max(1e-9, end - begin));
    }
  }).join();
  return rate;
}

#if defined(__x86_64__)

namespace {
constexpr int kReadRounds = 3;                                  // the fastest counts
constexpr int64_t kReadBytes = 4 << 20, kReadPart = 256 << 10;  // of all threads together; of one at least
}  // namespace

double KernelMeter::reading(std::span<const int> cpus) {
  const auto read = cpu::kernels_for(resolve_isa("")).read_sum;
  const int64_t part = std::max<int64_t>(kReadPart, kReadBytes / int64_t(cpus.size()) / 64 * 64);
  Scratch<char> memory;
  char* data = memory.get(part * int64_t(cpus.size()));
  std::vector<std::array<std::pair<double, double>, kReadRounds>> times(cpus.size());  // begin and end
  std::atomic<int> arrived = 0;
  std::atomic<bool> bound = true;
  const auto meet = [&](int count) {
    for (++arrived; arrived.load() < count * int(cpus.size());) std::this_thread::yield();
  };
  std::vector<std::thread> threads;
  for (size_t t = 0; t < cpus.size(); ++t)
    threads.emplace_back([&, t] {
      if (CpuCalls::system().bind_thread(cpus.subspan(t, 1)) != 0) bound = false;
      char* own = data + int64_t(t) * part;
      std::fill_n(own, part, char(0));
      for (int round = 0; round < kReadRounds; ++round) {
        for (int64_t i = 0; i < part; i += 64) _mm_clflush(own + i);
        _mm_mfence();
        meet(round + 1);
        times[t][size_t(round)].first = now();
        // Zeros add up to zero; the time depends on the sum, so that the reads cannot be optimised away.
        times[t][size_t(round)].second = read(own, part) + now();
      }
    });
  for (std::thread& thread : threads) thread.join();
  double seconds = 0;
  for (size_t round = 0; round < kReadRounds; ++round) {
    double begin = times[0][round].first, end = times[0][round].second;
    for (const auto& of : times) begin = std::min(begin, of[round].first), end = std::max(end, of[round].second);
    seconds = round == 0 ? end - begin : std::min(seconds, end - begin);
  }
  return bound && seconds > 0 ? double(part) * double(cpus.size()) / seconds : 0;
}

#else

double KernelMeter::reading(std::span<const int>) { return 0; }

#endif

ThreadPlan plan_computing(int wanted) {
  static std::mutex mutex;
  static std::optional<std::pair<CpuTopology, int>> planned;
  static ThreadPlan plan;
  const std::pair<CpuTopology, int> key(read_cpu_topology(), wanted);
  std::lock_guard lock(mutex);
  if (planned != key) {
    KernelMeter meter;
    plan = plan_threads(key.first, wanted, meter);
    planned = key;
  }
  return plan;
}

}  // namespace lynx_rt
