// Measures the read bandwidth of memory, the upper bound that decode is compared with.
#pragma once
#include <cstdint>
#include <vector>

#include "backend/cpu/kernels/kernels.h"
#include "backend/cpu/scratch.h"
#include "base/thread_pool.h"

namespace lynx_rt {

// Owns a buffer, which should be much larger than the caches. Thread-safety: one call at a time.
class BandwidthProbe {
 public:
  // num_threads: as of an engine, 0 = its default; bytes at least 1 MiB, rounded down to whole chunks.
  BandwidthProbe(int num_threads, int64_t bytes);
  // Reads the buffer once with all threads. Returns GB/s (1e9).
  double measure();

 private:
  const cpu::Kernels& kernels_;
  ThreadPool pool_;
  int64_t chunks_;
  Scratch<char> memory_;
  char* data_;
  std::vector<double> sums_;
};

}  // namespace lynx_rt
