// Tests csrc/tiers/direct_reader.h with injected faults: order, cancellation, errors, reads that hang, and random walks.
#include "tiers/direct_reader.h"

#include <algorithm>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/crc32c.h"
#include "base/memory.h"
#include "check.h"
#include "faulty_calls.h"
#include "temp_folder.h"

using namespace lynx_rt;

namespace {

constexpr int64_t kPage = 4096, kPages = 256, kSize = kPages * kPage;
constexpr double kLong = 60;  // seconds; no test waits so long

struct Fixture {
  Fixture() : text(size_t(kSize), '\0'), memory(static_cast<char*>(allocate_pages(kSize, "test"))) {
    std::mt19937_64 random(3);
    for (char& c : text) c = char(random());
    path = folder.write("file", text);
  }
  ~Fixture() { release_pages(memory, kSize); }
  std::shared_ptr<const DirectFile> open() { return std::make_shared<DirectFile>(path, calls); }
  // Makes it a request of pages [begin, begin + count), to the same place of the memory.
  void set(ReadRequest& r, const std::shared_ptr<const DirectFile>& file, int64_t begin, int64_t count) {
    r.file = file;
    r.offset = begin * kPage;
    r.bytes = count * kPage;
    r.to = memory + r.offset;
    r.crc32c = crc32c(text.data() + r.offset, r.bytes);
    std::memset(r.to, 0, size_t(r.bytes));
  }
  bool right(const ReadRequest& r) const { return std::memcmp(r.to, text.data() + r.offset, size_t(r.bytes)) == 0; }

  TempFolder folder;
  std::string text, path;
  char* memory;
  FaultyCalls calls;
};

bool wait(DirectReader& reader, ReadRequest& r) {
  ReadRequest* const one = &r;
  return reader.wait_any({&one, 1}, kLong);
}

ReaderOptions options(int threads, int depth, int64_t piece = kPage) {
  return {.num_threads = threads, .depth = depth, .piece_bytes = piece, .close_timeout_s = kLong};
}

void test_reads_and_counts() {
  Fixture f;
  const auto file = f.open();
  DirectReader reader(options(4, 3, 2 * kPage));
  std::vector<ReadRequest> requests(8);
  for (size_t i = 0; i < 8; ++i) {
    f.set(requests[i], file, int64_t(i) * 9, 7);
    reader.read(requests[i], i % 2 ? ReadPriority::kDemand : ReadPriority::kPrefetch);
  }
  for (ReadRequest& r : requests) {
    CHECK(wait(reader, r));
    CHECK(r.state() == ReadState::kReady && f.right(r));
  }
  const ReaderStats s = reader.stats();
  CHECK_EQ(s.num_demands, 4);
  CHECK_EQ(s.num_prefetches, 4);
  CHECK_EQ(s.demand_bytes, 4 * 7 * kPage);
  CHECK_EQ(s.prefetch_bytes, 4 * 7 * kPage);
  CHECK_EQ(s.num_failed + s.num_cancelled + s.num_retries + s.num_short_reads, 0);
  CHECK_EQ(f.calls.num_reads.load(), 8 * 4);  // pieces
  CHECK(s.rate > 0 && s.busy_s > 0 && s.p50_s > 0 && s.p99_s >= s.p50_s && s.oldest_s == 0);
  CHECK_EQ(s.depth, 3);
  requests[0].reset();
  f.set(requests[0], file, 100, 1);
  reader.read(requests[0], ReadPriority::kDemand);  // used again
  CHECK(wait(reader, requests[0]) && f.right(requests[0]));
}

// A demand goes before the pieces of a prefetch that nobody has taken yet, and so does a prefetch that is promoted.
void test_demand_preempts() {
  Fixture f;
  const auto file = f.open();
  DirectReader reader(options(1, 1));
  ReadRequest prefetch, promoted, demand;
  f.set(prefetch, file, 0, 50), f.set(promoted, file, 60, 3), f.set(demand, file, 70, 2);
  f.calls.hang_at = 0;
  reader.read(prefetch, ReadPriority::kPrefetch);
  f.calls.wait_until_hanging();
  reader.read(promoted, ReadPriority::kPrefetch);
  reader.read(demand, ReadPriority::kDemand);
  reader.promote(promoted);
  CHECK(reader.stats().oldest_s > 0);
  f.calls.release();
  CHECK(wait(reader, prefetch) && f.right(prefetch) && f.right(promoted) && f.right(demand));
  std::vector<int64_t> expected = {0, 70, 71, 60, 61, 62};
  for (int64_t page = 1; page < 50; ++page) expected.push_back(page);
  for (int64_t& page : expected) page *= kPage;
  CHECK(f.calls.offsets() == expected);
  CHECK_EQ(reader.stats().num_demands, 2);
}

void test_failures() {
  Fixture f;
  const auto file = f.open();
  DirectReader reader(options(2, 2));
  ReadRequest bad, good;
  f.set(bad, file, 0, 20), f.set(good, file, 30, 20);
  f.calls.fail_from = 3, f.calls.num_fails = 40;
  reader.read(bad, ReadPriority::kDemand);
  CHECK(wait(reader, bad));
  CHECK(bad.state() == ReadState::kFailed && bad.error_code() == ErrorCode::kDevice);
  CHECK(bad.error().find(f.path) != std::string::npos && bad.error().find("errno 5") != std::string::npos);
  CHECK(f.calls.num_reads < 20);  // what was left of it is not read
  f.calls.fail_from = -1;
  reader.read(good, ReadPriority::kDemand);  // the reader goes on
  CHECK(wait(reader, good) && good.state() == ReadState::kReady && f.right(good));

  ReadRequest cut;
  f.set(cut, file, 10, 4);
  f.calls.size = 12 * kPage;
  reader.read(cut, ReadPriority::kDemand);
  CHECK(wait(reader, cut) && cut.state() == ReadState::kFailed && cut.error_code() == ErrorCode::kCorruptFile);
  CHECK(cut.error().find("cut off") != std::string::npos && cut.error().find(str_cat("found ", 12 * kPage)) != std::string::npos);
  f.calls.size = INT64_MAX;

  ReadRequest changed;
  f.set(changed, file, 10, 4);
  *changed.crc32c ^= 1;
  reader.read(changed, ReadPriority::kDemand);
  CHECK(wait(reader, changed) && changed.state() == ReadState::kFailed && changed.error_code() == ErrorCode::kCorruptFile);
  CHECK(changed.error().find("CRC-32C") != std::string::npos);
  CHECK_EQ(reader.stats().num_failed, 3);
}

void test_mistakes() {
  Fixture f;
  CHECK_THROWS(DirectReader(options(0, 1)), ErrorCode::kInvalidArgument, "num_threads", {"1..64", "0"});
  CHECK_THROWS(DirectReader(options(1, 1, 5000)), ErrorCode::kInvalidArgument, "piece_bytes", {"multiple of 4096", "5000"});
  DirectReader reader(options(2, 2));
  CHECK_THROWS(reader.set_depth(3), ErrorCode::kInvalidArgument, "depth", {"1..2", "3"});
  ReadRequest r;
  f.set(r, f.open(), 0, 1);
  r.offset = 512;
  CHECK_THROWS(reader.read(r, ReadPriority::kDemand), ErrorCode::kInvalidArgument, "offset", {"multiple of 4096", "512"});
  r.offset = 0;
  reader.read(r, ReadPriority::kDemand);
  CHECK_THROWS(reader.read(r, ReadPriority::kDemand), ErrorCode::kInternal, "", {"begun already"});
  CHECK(wait(reader, r));
  CHECK(reader.close(kLong));
  r.reset();
  CHECK_THROWS(reader.read(r, ReadPriority::kDemand), ErrorCode::kClosed, "", {"closed"});
  CHECK(reader.close(kLong));  // again
}

void test_cancel() {
  Fixture f;
  const auto file = f.open();
  DirectReader reader(options(1, 1));
  ReadRequest begun, queued;
  f.set(begun, file, 0, 10), f.set(queued, file, 20, 10);
  f.calls.hang_at = 0;
  reader.read(begun, ReadPriority::kDemand);
  f.calls.wait_until_hanging();
  reader.read(queued, ReadPriority::kPrefetch);
  reader.cancel(queued);
  CHECK(queued.state() == ReadState::kFailed && queued.error_code() == ErrorCode::kClosed);
  reader.cancel(begun);
  CHECK(begun.state() == ReadState::kReading);  // its memory may still be written to
  ReadRequest* const one = &begun;
  CHECK(!reader.wait_any({&one, 1}, 0.01));
  f.calls.release();
  CHECK(wait(reader, begun) && begun.state() == ReadState::kFailed);
  CHECK_EQ(f.calls.num_reads.load(), 1);
  CHECK_EQ(reader.stats().num_cancelled, 2);
  reader.cancel(begun);                // over
  CHECK(!reader.wait_any({}, kLong));  // nothing to wait for
}

// close() gives up a read that hangs. The thread that hangs touches neither the request nor the reader later.
void test_close_with_a_hanging_read() {
  Fixture f;
  std::weak_ptr<const DirectFile> used;
  {
    const auto file = f.open();
    used = file;
    DirectReader reader(options(3, 2));
    auto hanging = std::make_unique<ReadRequest>(), queued = std::make_unique<ReadRequest>();
    f.set(*hanging, file, 5, 1), f.set(*queued, file, 9, 200);
    f.calls.hang_at = hanging->offset;
    reader.read(*hanging, ReadPriority::kDemand);
    f.calls.wait_until_hanging();
    reader.read(*queued, ReadPriority::kPrefetch);
    const double begin = now();
    CHECK(!reader.close(0.05));
    CHECK(now() - begin < 10);
    CHECK(hanging->state() == ReadState::kFailed && hanging->error().find("hangs") != std::string::npos);
    CHECK(queued->done());
  }
  f.calls.release();
  while (f.calls.num_reading > 0 || !used.expired()) std::this_thread::yield();
}

// Random requests, promotions, cancellations and faults: every request ends, and what is ready is right.
void test_random_walk() {
  for (const uint64_t seed : {1, 2, 3}) {
    Fixture f;
    f.calls.most_delay_us = 200;
    f.calls.interrupt_every = 7;
    f.calls.most_bytes = 3000;
    std::mt19937_64 random(seed);
    const auto below = [&](int64_t n) { return int64_t(random() % uint64_t(n)); };
    const auto file = f.open();
    DirectReader reader(options(4, 2, 2 * kPage));
    std::vector<ReadRequest> requests(16);  // each has 16 pages of its own
    std::vector<bool> cancelled(16);
    int64_t ready = 0, failed = 0;
    for (int step = 0; step < 3000; ++step) {
      const size_t i = size_t(below(16));
      ReadRequest& r = requests[i];
      if (r.done()) {
        if (r.state() == ReadState::kReady) {
          CHECK(f.right(r));
          ++ready;
        } else {
          CHECK(cancelled[i]);
          ++failed;
        }
        r.reset();
      } else if (r.state() == ReadState::kAbsent) {
        const int64_t begin = below(16);
        f.set(r, file, int64_t(i) * 16 + begin, 1 + below(16 - begin));
        cancelled[i] = false;
        reader.read(r, below(2) ? ReadPriority::kDemand : ReadPriority::kPrefetch);
      } else if (below(8) == 0) {
        reader.cancel(r);
        cancelled[i] = true;
      } else if (below(4) == 0) {
        reader.promote(r);
      } else {
        ReadRequest* const one = &r;
        reader.wait_any({&one, 1}, below(2) * 1e-4);
      }
      if (below(50) == 0) reader.set_depth(int(1 + below(4)));
    }
    CHECK(ready > 100 && failed > 10);
    CHECK(reader.close(kLong));
    for (const ReadRequest& r : requests) CHECK(r.state() != ReadState::kReading);
  }
}

void test_depth_is_measured() {
  const TempFolder folder;
  FaultyCalls calls;
  calls.most_delay_us = 400;  // reads that sleep overlap, so a deeper queue is faster
  const std::string path = folder.path("large");
  folder.write("large", "");
  std::filesystem::resize_file(path, 65 << 20);  // a hole
  DirectReader reader(options(4, 1, 1 << 20));
  const auto rates = measure_depth(reader, std::make_shared<DirectFile>(path, calls));
  CHECK_EQ(rates.size(), size_t(3));
  double best = 0;
  for (const DepthRate& r : rates) best = std::max(best, r.rate);
  const int depth = reader.stats().depth;
  for (const DepthRate& r : rates) CHECK(r.depth == depth ? r.rate >= 0.85 * best : r.depth > depth || r.rate < 0.85 * best);
  calls.fail_from = 0, calls.num_fails = INT64_MAX / 2;
  CHECK_THROWS(measure_depth(reader, std::make_shared<DirectFile>(path, calls)), ErrorCode::kDevice, path, {"errno 5"});
  Fixture small;
  CHECK(measure_depth(reader, small.open()).empty());
}

}  // namespace

int main() {
  test_reads_and_counts();
  test_demand_preempts();
  test_failures();
  test_mistakes();
  test_cancel();
  test_close_with_a_hanging_read();
  test_random_walk();
  test_depth_is_measured();
  return check::result("test_direct_reader");
}
