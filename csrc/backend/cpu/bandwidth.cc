#include "backend/cpu/bandwidth.h"

#include <algorithm>
#include <chrono>

#include "backend/cpu/core_meter.h"
#include "base/error.h"

namespace lynx_rt {

namespace {
constexpr int64_t kChunk = 1 << 19;  // per task
constexpr size_t kApart = 8;         // doubles from one thread's sum to the next: one cache line
}  // namespace

BandwidthProbe::BandwidthProbe(int num_threads, int64_t bytes)
    : kernels_(cpu::kernels_for(best_isa())),
      pool_(plan_computing(num_threads)),
      chunks_(bytes / kChunk),
      sums_(size_t(pool_.num_threads()) * kApart) {
  if (bytes < (1 << 20)) invalid("bytes", "expected at least 1 MiB, got ", bytes);
  data_ = memory_.get(chunks_ * kChunk);
  pool_.parallel_for(chunks_, [&](int64_t c, int) { std::fill_n(data_ + c * kChunk, kChunk, char(0)); });
}

double BandwidthProbe::measure() {
  auto start = std::chrono::steady_clock::now();
  pool_.parallel_for(chunks_,
                     [&](int64_t c, int t) { sums_[size_t(t) * kApart] += kernels_.read_sum(data_ + c * kChunk, kChunk); });
  double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  // The sums are used, so that the reads cannot be optimised away.
  for (double s : sums_)
    if (s != 0) fail(ErrorCode::kInternal, "bandwidth", "zeroed memory did not read as zero");
  return double(chunks_ * kChunk) / seconds / 1e9;
}

}  // namespace lynx_rt
