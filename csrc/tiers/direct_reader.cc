#include "tiers/direct_reader.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/crc32c.h"
#include "base/fork.h"
#include "base/types.h"

namespace lynx_rt {

namespace {

constexpr double kRateBytes = 64 << 20;  // bytes over which the rate is averaged

// Counts of durations by size: four buckets per power of two, from a microsecond on.
class Durations {
 public:
  void add(double seconds) {
    const double bucket = 4 * std::log2(std::max(1.0, seconds * 1e6));
    ++counts_[size_t(std::min(bucket, double(kBuckets - 1)))];
    ++total_;
  }
  double quantile(double share) const {
    int64_t left = int64_t(std::ceil(share * double(total_)));
    if (left == 0) return 0;
    size_t bucket = 0;
    while ((left -= counts_[bucket]) > 0) ++bucket;
    return 1e-6 * std::exp2((double(bucket) + 0.5) / 4);
  }

 private:
  static constexpr int kBuckets = 128;
  std::array<int64_t, kBuckets> counts_{};
  int64_t total_ = 0;
};

void expect_aligned(const char* what, int64_t value) {
  if (value % DirectFile::kAlignment != 0) invalid(what, "expected a multiple of ", DirectFile::kAlignment, ", got ", value);
}

std::chrono::duration<double> seconds(double s) { return std::chrono::duration<double>(std::clamp(s, 0.0, 1e8)); }

}  // namespace

struct DirectReader::Queue {
  struct Piece {
    ReadRequest* request;
    std::shared_ptr<const DirectFile> file;
    int64_t offset, bytes;
    char* to;
  };

  explicit Queue(const ReaderOptions& o)
      : options(o), begun(size_t(o.num_threads)), reading(size_t(o.num_threads)), given_up(size_t(o.num_threads)) {}

  const ReaderOptions options;
  const ForkGuard fork_guard;
  std::vector<std::thread> threads;

  std::mutex mutex;  // guards all below
  std::condition_variable work, done;
  std::deque<ReadRequest*> demands, prefetches;  // with pieces that nobody has taken yet
  int depth = 0, in_flight = 0, running = 0;
  bool stopped = false, abandoned = false;
  std::vector<double> begun;          // when the threads began the pieces that they read; 0 = none
  std::vector<ReadRequest*> reading;  // and of which requests they are
  std::vector<bool> given_up;         // whether that piece no longer counts to in_flight
  Durations demand_times;
  double busy_since = 0, rate_since = 0, rate_bytes = 0, rate_seconds = 0;
  ReaderStats counts;

  bool has_work() const { return in_flight < depth && (!demands.empty() || !prefetches.empty()); }

  Piece take(size_t thread) {
    std::deque<ReadRequest*>& from = demands.empty() ? prefetches : demands;
    ReadRequest& r = *from.front();
    const int64_t bytes = std::min(r.piece_, r.bytes - r.next_);
    const Piece piece{&r, r.file, r.offset + r.next_, bytes, static_cast<char*>(r.to) + r.next_};
    r.next_ += bytes;
    if (r.next_ == r.bytes) from.pop_front();
    ++r.in_flight_;
    begun[thread] = now();
    reading[thread] = &r;
    if (in_flight++ == 0) busy_since = rate_since = begun[thread];
    return piece;
  }

  // Counts a piece that has been read, and adds to the rate: bytes and time are both averages with exponential weights.
  void end_piece(const Piece& piece, const ReadResult& result, size_t thread) {
    const double time = now();
    counts.num_retries += result.retries;
    counts.num_short_reads += result.num_short_reads;
    begun[thread] = 0;
    if (given_up[thread]) {
      given_up[thread] = false;
      return;
    }
    if (result.ok()) {
      const double keep = std::exp(-double(piece.bytes) / kRateBytes);
      rate_bytes = rate_bytes * keep + double(piece.bytes);
      rate_seconds = rate_seconds * keep + time - rate_since;
      rate_since = time;
    }
    leave_flight(time);
  }

  void leave_flight(double time) {
    if (--in_flight == 0) counts.busy_s += time - busy_since;
  }

  void forget(ReadRequest& r) {
    std::erase(demands, &r);
    std::erase(prefetches, &r);
  }

  // Fails a request, of which nothing more is read. It ends at once, or with its last piece in flight.
  void fail_request(ReadRequest& r, ErrorCode code, std::string text) {
    if (!r.failed_) {
      r.failed_ = true;
      r.error_code_ = code;
      r.error_ = std::move(text);
      forget(r);
      ++(code == ErrorCode::kClosed ? counts.num_cancelled : counts.num_failed);
    }
    if (r.in_flight_ == 0) end(r);
  }

  void end(ReadRequest& r) {
    if (!r.failed_) {
      ++(r.demanded_ ? counts.num_demands : counts.num_prefetches);
      (r.demanded_ ? counts.demand_bytes : counts.prefetch_bytes) += r.bytes;
      if (r.demanded_) demand_times.add(now() - r.queued_);
    }
    r.state_.store(r.failed_ ? ReadState::kFailed : ReadState::kReady, std::memory_order_release);
    done.notify_all();
  }

  void cancel(ReadRequest& r, const char* why) {
    if (r.state() != ReadState::kReading) return;
    fail_request(r, ErrorCode::kClosed, str_cat(r.file->path(), ": the read at byte ", r.offset, " was ", why));
  }
};

namespace {

std::string describe(const DirectFile& file, const ReadResult& result, int64_t end) {
  if (result.truncated)
    return str_cat(file.path(), ": was cut off while it is in use: expected bytes up to ", end, ", found ", result.offset,
                   "; it had ", file.size());
  return str_cat(file.path(), ": cannot read at byte ", result.offset, ": ", std::system_category().message(result.error),
                 " (errno ", result.error, ")");
}

}  // namespace

DirectReader::DirectReader(const ReaderOptions& o) {
  if (o.num_threads < 1 || o.num_threads > 64) invalid("num_threads", "expected 1..64, got ", o.num_threads);
  if (o.piece_bytes < DirectFile::kAlignment)
    invalid("piece_bytes", "expected at least ", DirectFile::kAlignment, ", got ", o.piece_bytes);
  expect_aligned("piece_bytes", o.piece_bytes);
  queue_ = std::make_shared<Queue>(o);
  set_depth(std::min(o.depth, o.num_threads));
  queue_->running = o.num_threads;
  for (int t = 0; t < o.num_threads; ++t) queue_->threads.emplace_back([queue = queue_, t] { serve(queue, size_t(t)); });
}

DirectReader::~DirectReader() {
  if (queue_->fork_guard.forked()) {
    // The child of a fork() leaks the queue: threads that do not exist cannot be joined.
    static_cast<void>(new std::shared_ptr<Queue>(queue_));
    return;
  }
  close(queue_->options.close_timeout_s);
}

void DirectReader::serve(const std::shared_ptr<Queue>& queue, size_t thread) {
  Queue& q = *queue;
  std::unique_lock lock(q.mutex);
  while (true) {
    q.work.wait(lock, [&] { return q.stopped || q.has_work(); });
    if (q.stopped) break;
    const Queue::Piece piece = q.take(thread);
    lock.unlock();
    const ReadResult result = piece.file->read(piece.offset, piece.bytes, piece.to);
    lock.lock();
    if (q.abandoned) return;  // the request may be gone
    q.end_piece(piece, result, thread);
    ReadRequest& r = *piece.request;
    r.finished_ += piece.bytes;
    if (!result.ok() && !r.failed_) {
      const bool truncated = result.truncated;
      --r.in_flight_;
      q.fail_request(r, truncated ? ErrorCode::kCorruptFile : ErrorCode::kDevice,
                     describe(*piece.file, result, piece.offset + piece.bytes));
      continue;
    }
    if (!r.failed_ && r.finished_ == r.bytes && r.crc32c) {
      const void* all = r.to;
      const int64_t bytes = r.bytes;
      lock.unlock();
      const uint32_t found = crc32c(all, bytes);
      lock.lock();
      if (q.abandoned) return;
      if (found != *r.crc32c) {
        --r.in_flight_;
        q.fail_request(r, ErrorCode::kCorruptFile,
                       str_cat(r.file->path(), ": the ", r.bytes, " bytes at byte ", r.offset, ": expected the CRC-32C ",
                               *r.crc32c, ", found ", found));
        continue;
      }
    }
    if (--r.in_flight_ == 0 && (r.failed_ || r.finished_ == r.bytes)) q.end(r);
  }
  --q.running;
  q.done.notify_all();
}

void DirectReader::read(ReadRequest& r, ReadPriority priority) {
  Queue& q = *queue_;
  q.fork_guard.check("the reader of experts");
  expect_aligned("offset", r.offset);
  expect_aligned("bytes", r.bytes);
  expect_aligned("to", int64_t(reinterpret_cast<uintptr_t>(r.to)));
  if (r.state() != ReadState::kAbsent || r.bytes <= 0 || r.offset < 0)
    fail(ErrorCode::kInternal, "", "a read began that has no bytes or has begun already");
  std::lock_guard lock(q.mutex);
  if (q.stopped) fail(ErrorCode::kClosed, "", "the reader of experts has been closed");
  const int64_t pieces = ceil_div(r.bytes, q.options.piece_bytes);
  r.piece_ = round_up(ceil_div(r.bytes, pieces), DirectFile::kAlignment);  // equal, so that they end at the same time
  r.next_ = r.finished_ = 0;
  r.in_flight_ = 0;
  r.failed_ = false;
  r.demanded_ = priority == ReadPriority::kDemand;
  r.queued_ = now();
  r.state_.store(ReadState::kReading, std::memory_order_relaxed);
  (r.demanded_ ? q.demands : q.prefetches).push_back(&r);
  for (int64_t i = std::min<int64_t>(pieces, q.depth - q.in_flight); i > 0; --i) q.work.notify_one();
}

void DirectReader::promote(ReadRequest& r) {
  std::lock_guard lock(queue_->mutex);
  if (r.state() != ReadState::kReading || r.demanded_) return;
  r.demanded_ = true;
  r.queued_ = now();
  if (std::erase(queue_->prefetches, &r)) queue_->demands.push_back(&r);
}

void DirectReader::cancel(ReadRequest& r) {
  std::lock_guard lock(queue_->mutex);
  queue_->cancel(r, "cancelled");
}

bool DirectReader::wait_any(std::span<ReadRequest* const> requests, double timeout_s) {
  const auto any_done = [&] { return std::any_of(requests.begin(), requests.end(), [](const auto* r) { return r->done(); }); };
  if (any_done()) return true;
  std::unique_lock lock(queue_->mutex);
  const auto over = [&] {
    return any_done() ||
           std::none_of(requests.begin(), requests.end(), [](const auto* r) { return r->state() == ReadState::kReading; });
  };
  queue_->done.wait_for(lock, seconds(timeout_s), over);
  return any_done();
}

bool DirectReader::close(double timeout_s) {
  Queue& q = *queue_;
  if (q.fork_guard.forked()) return true;
  std::vector<std::thread> threads;
  bool ended;
  {
    std::unique_lock lock(q.mutex);
    if (q.stopped) return !q.abandoned;
    q.stopped = true;
    for (std::deque<ReadRequest*>* queued : {&q.demands, &q.prefetches})
      while (!queued->empty()) q.cancel(*queued->front(), "cancelled, since its reader was closed");
    q.work.notify_all();
    ended = q.done.wait_for(lock, seconds(timeout_s), [&] { return q.running == 0; });
    q.abandoned = !ended;
    for (size_t i = 0; q.abandoned && i < q.begun.size(); ++i)
      if (q.begun[i] > 0) {
        q.reading[i]->in_flight_ = 0;
        q.cancel(*q.reading[i], "given up, since it hangs and its reader was closed");
      }
    threads.swap(q.threads);
  }
  for (std::thread& t : threads) ended ? t.join() : t.detach();
  return ended;
}

void DirectReader::give_up(double age_s) {
  Queue& q = *queue_;
  std::lock_guard lock(q.mutex);
  const double time = now();
  for (size_t i = 0; i < q.begun.size(); ++i)
    if (q.begun[i] > 0 && time - q.begun[i] > age_s && !q.given_up[i]) {
      q.given_up[i] = true;
      q.leave_flight(time);
    }
  q.work.notify_all();
}

int DirectReader::max_depth() const { return queue_->options.num_threads; }

void DirectReader::set_depth(int depth) {
  if (depth < 1 || depth > max_depth()) invalid("depth", "expected 1..", max_depth(), ", got ", depth);
  std::lock_guard lock(queue_->mutex);
  queue_->depth = depth;
  queue_->work.notify_all();
}

ReaderStats DirectReader::stats() const {
  const Queue& q = *queue_;
  std::lock_guard lock(queue_->mutex);
  const double time = now();
  ReaderStats s = q.counts;
  s.depth = q.depth;
  if (q.in_flight > 0) s.busy_s += time - q.busy_since;
  s.rate = q.rate_seconds > 0 ? q.rate_bytes / q.rate_seconds : 0;
  s.p50_s = q.demand_times.quantile(0.5);
  s.p99_s = q.demand_times.quantile(0.99);
  for (const double begun : q.begun)
    if (begun > 0) s.oldest_s = std::max(s.oldest_s, time - begun);
  return s;
}

}  // namespace lynx_rt
