// Threads that read records of a file to memory, past the page cache, while the caller computes.
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/direct_file.h"
#include "base/error.h"

namespace lynx_rt {

// absent -> reading -> ready | failed. The caller's thread alone changes a state, but for the end of a read, which a reader writes as
// the last thing that it does with the request.
enum class ReadState : uint8_t { kAbsent, kReading, kReady, kFailed };

// A read that the caller asks for. The caller keeps it, and the memory, until the state is ready or failed.
class ReadRequest {
 public:
  std::shared_ptr<const DirectFile> file;
  int64_t offset = 0, bytes = 0;  // multiples of DirectFile::kAlignment, like the address `to`
  void* to = nullptr;
  std::optional<uint32_t> crc32c;  // what the bytes must have; absent: nothing is checked

  ReadState state() const { return state_.load(std::memory_order_acquire); }
  bool done() const { return state() == ReadState::kReady || state() == ReadState::kFailed; }
  // Takes the state back to absent, so that the request can be used again. Not while it is being read.
  void reset() { state_.store(ReadState::kAbsent, std::memory_order_relaxed); }

  // The error of a failed request. kCorruptFile: the file ended, or the checksum differs; kClosed: cancelled; kDevice: any other error.
  ErrorCode error_code() const { return error_code_; }
  const std::string& error() const { return error_; }  // names the file, the offset, what was expected and what was found

 private:
  friend class DirectReader;
  std::atomic<ReadState> state_ = ReadState::kAbsent;
  ErrorCode error_code_ = ErrorCode::kInternal;
  std::string error_;
  // Guarded by the queue's lock.
  int64_t piece_ = 0;     // bytes of a piece
  int64_t next_ = 0;      // where the next piece begins
  int64_t finished_ = 0;  // bytes of finished pieces
  int in_flight_ = 0;     // pieces that are being read
  bool failed_ = false, demanded_ = false;
  double queued_ = 0;  // when
};

enum class ReadPriority : uint8_t { kDemand, kPrefetch };

struct ReaderOptions {
  int num_threads = 8;            // bounds the depth
  int depth = 2;                  // pieces that are read at a time; measure_depth() knows better
  int64_t piece_bytes = 1 << 20;  // at most: a demand waits for so much of a prefetch; a multiple of DirectFile::kAlignment
  double close_timeout_s = 10;    // the destructor waits so long for reads that hang
};

// Counters since construction.
struct ReaderStats {
  int64_t num_demands = 0, num_prefetches = 0;  // requests that became ready
  int64_t demand_bytes = 0, prefetch_bytes = 0;
  int64_t num_failed = 0, num_cancelled = 0, num_retries = 0, num_short_reads = 0;
  double busy_s = 0;            // time with at least one piece being read
  double rate = 0;              // bytes per second of that time, weighted to the last 64 MiB; 0 = nothing was read yet
  double p50_s = 0, p99_s = 0;  // from read() to ready, of demands; to 20 %
  double oldest_s = 0;          // age of the oldest piece that is being read
  int depth = 0;
};

// A demand goes before all prefetches, piece by piece. Thread-safety: methods are called from one thread, but stats() from any.
// Test: tests/cpp/test_direct_reader.cc.
class DirectReader {
 public:
  explicit DirectReader(const ReaderOptions& options = {});
  ~DirectReader();  // close(options.close_timeout_s)
  DirectReader(const DirectReader&) = delete;

  // Begins a read: absent -> reading. Throws kClosed after close(), and in the child of a fork(); kInvalidArgument where something is
  // not aligned. Errors of the read itself end in the request's state.
  void read(ReadRequest& request, ReadPriority priority);
  // Makes a prefetch a demand. Leaves other requests alone.
  void promote(ReadRequest& request);
  // Drops what has not begun. The request becomes failed: now, or when its pieces in flight have ended.
  void cancel(ReadRequest& request);
  // Waits until one of the requests is done, or none is being read, at most timeout_s. Returns whether one is done.
  bool wait_any(std::span<ReadRequest* const> requests, double timeout_s);
  // Cancels everything and ends the threads. Returns false where a read still hangs after timeout_s: its request is failed, but its
  // memory may still be written to and must never be freed.
  bool close(double timeout_s);

  // Stops counting the pieces to the depth that have been read for longer than age_s, so that others are read in other threads. They may
  // still end.
  void give_up(double age_s);

  int max_depth() const;
  void set_depth(int depth);  // 1..max_depth()
  ReaderStats stats() const;

 private:
  struct Queue;
  static void serve(const std::shared_ptr<Queue>& queue, size_t thread);

  std::shared_ptr<Queue> queue_;  // shared with the threads, of which one may outlive the reader
};

struct DepthRate {
  int depth;
  double rate;  // bytes per second
};
// Reads pieces at random places of the file at depths 1, 2, 4, .., and sets the reader to the smallest depth that is within 15 % of the
// best rate, since a deeper queue only adds to the time that a read takes. Takes some 0.5 s on a disk of 1 GB/s, during which nothing
// else may be read. Leaves the depth alone, and returns nothing, for a file of less than 64 MiB. Throws the error of a read that fails.
std::vector<DepthRate> measure_depth(DirectReader& reader, const std::shared_ptr<const DirectFile>& file);

}  // namespace lynx_rt
