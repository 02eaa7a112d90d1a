// File calls with faults: errors, signals, short reads, truncation, delays, and reads that hang until they are released.
#pragma once
#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "base/direct_file.h"

class FaultyCalls : public lynx_rt::FileCalls {
 public:
  // Set before a file is opened.
  bool refuse_direct = false;        // at open, as tmpfs does
  bool refuse_direct_reads = false;  // at the first read
  // Set while nothing is read.
  int64_t fail_from = -1, num_fails = 1;  // reads number fail_from .. + num_fails - 1 (0 is the next one) ..
  int fail_every = 0;                     // of so many reads, three in a row ..
  int error = EIO;                        // .. fail with this
  int interrupt_every = 0;                // each n-th read ends with EINTR
  int64_t most_bytes = INT64_MAX;         // of one read
  int64_t size = INT64_MAX;               // where the file ends
  int most_delay_us = 0;
  int slow_every = 0;                 // each n-th read takes 5 ms longer
  std::atomic<int64_t> hang_at = -1;  // reads of this offset wait for release()

  std::atomic<int64_t> num_reads = 0, num_direct = 0, dropped_bytes = 0;
  std::atomic<int> num_reading = 0;

  int open(const char* path, bool direct) override {
    if (direct && refuse_direct) return -EINVAL;
    const int descriptor = FileCalls::open(path, false);  // so that faults need not be aligned
    const std::lock_guard lock(mutex_);
    if (direct) direct_.insert(descriptor);
    return descriptor;
  }

  int64_t read(int descriptor, void* to, int64_t bytes, int64_t offset) override {
    ++num_reading;
    const int64_t count = read_faultily(descriptor, to, bytes, offset);
    --num_reading;
    return count;
  }

  void drop_cached(int descriptor, int64_t offset, int64_t bytes) override {
    dropped_bytes += bytes;
    FileCalls::drop_cached(descriptor, offset, bytes);
  }

  std::vector<int64_t> offsets() {  // of all reads, in order
    const std::lock_guard lock(mutex_);
    return offsets_;
  }
  void wait_until_hanging() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return hanging_ > 0; });
  }
  void release() {
    const std::lock_guard lock(mutex_);
    released_ = true;
    changed_.notify_all();
  }

 private:
  int64_t read_faultily(int descriptor, void* to, int64_t bytes, int64_t offset) {
    int64_t number;
    {
      std::unique_lock lock(mutex_);
      number = num_reads++;
      offsets_.push_back(offset);
      if (direct_.count(descriptor)) {
        ++num_direct;
        if (refuse_direct_reads || bytes % 4096 || offset % 4096) return -EINVAL;
      }
      if (offset == hang_at) {
        ++hanging_;
        changed_.notify_all();
        changed_.wait(lock, [&] { return released_; });
        --hanging_;
      }
      if (most_delay_us > 0) {
        const auto delay = std::chrono::microseconds(random_() % uint64_t(most_delay_us));
        lock.unlock();
        std::this_thread::sleep_for(delay);
      }
      if (slow_every > 0 && number % slow_every == 0) {
        if (lock.owns_lock()) lock.unlock();
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
      }
    }
    if (fail_from >= 0 && number >= fail_from && number < fail_from + num_fails) return -error;
    if (fail_every > 0 && number % fail_every >= fail_every - 3) return -error;
    if (interrupt_every > 0 && number % interrupt_every == 0) return -EINTR;
    bytes = std::min({bytes, most_bytes, std::max<int64_t>(0, size - offset)});
    return bytes == 0 ? 0 : FileCalls::read(descriptor, to, bytes, offset);
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::set<int> direct_;
  std::vector<int64_t> offsets_;
  std::mt19937_64 random_{1};
  int hanging_ = 0;
  bool released_ = false;
};
