// read_bandwidth(): what decode is measured against.
#include <chrono>

#include "backend/cpu/cpu_backend.h"

namespace lynx_rt {

double read_bandwidth(int num_threads, int64_t bytes, double seconds) {
  if (bytes < (1 << 20)) invalid("bytes", "expected at least 1 MiB, got ", bytes);
  if (!(seconds > 0)) invalid("seconds", "expected a positive time, got ", seconds);
  using Clock = std::chrono::steady_clock;
  constexpr int64_t kChunk = 1 << 19;
  const cpu::Kernels& kernels = cpu::kernels_for(best_isa());
  ThreadPool pool(num_threads == 0 ? usable_cores() : num_threads);
  int64_t chunks = bytes / kChunk;
  Scratch<char> memory;
  char* data = memory.get(chunks * kChunk);
  std::vector<double> sums(size_t(pool.num_threads()) * 8);
  pool.parallel_for(chunks, [&](int64_t c, int) { std::fill_n(data + c * kChunk, kChunk, char(0)); });
  double best = 0;
  auto start = Clock::now();
  do {
    auto pass = Clock::now();
    pool.parallel_for(chunks, [&](int64_t c, int t) { sums[size_t(t) * 8] += kernels.read_sum(data + c * kChunk, kChunk); });
    double took = std::chrono::duration<double>(Clock::now() - pass).count();
    best = std::max(best, double(chunks * kChunk) / took / 1e9);
  } while (std::chrono::duration<double>(Clock::now() - start).count() < seconds);
  // The sums are used, so that the reads cannot be optimised away.
  for (double s : sums)
    if (s != 0) fail(ErrorCode::kInternal, "bandwidth", "zeroed memory did not read as zero");
  return best;
}

}  // namespace lynx_rt
