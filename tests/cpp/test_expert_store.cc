// Tests csrc/tiers/expert_store.h: random walks with delayed reads, whose experts have the right values and whose residents are those that
// the history of routing alone gives; failing reads; steps that end early.
#include "tiers/expert_store.h"

#include <algorithm>
#include <chrono>
#include <fstream>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "check.h"
#include "faulty_calls.h"
#include "same_weights.h"
#include "temp_folder.h"

using namespace lynx_rt;

namespace {

constexpr int64_t kExperts = 9, kWidth = 6, kHidden = 16, kPage = 4096;
constexpr int64_t kLayers[] = {0, 2, 3};  // of the file's four layers: those with experts

// A file whose experts have random values. Layers have experts of different sizes.
struct Fixture {
  Fixture() {
    std::mt19937_64 random(7);
    path = folder.path("experts.bin");
    ExpertFileWriter writer(path, {"test", "none", "f"}, 0);
    for (const int64_t l : kLayers)
      for (int64_t e = 0; e < kExperts; ++e) {
        const int64_t width = kWidth + 100 * l;
        const auto matrix = [&](int64_t rows, int64_t cols) {
          auto& values = kept.emplace_back(size_t(rows * cols));
          for (float& v : values) v = float(random() % 1000);
          return WeightView{values.data(), DType::kF32, rows, cols};
        };
        experts.push_back({matrix(width, kHidden), matrix(width, kHidden), matrix(kHidden, width), {}, {}, {}});
        writer.add(l, experts.back());
      }
    writer.finish(4);
  }
  std::shared_ptr<const ExpertFile> open() { return std::make_shared<const ExpertFile>(path, calls); }
  const ExpertWeights& expert(int64_t layer, int32_t e) const { return experts[size_t(layer * kExperts + e)]; }

  TempFolder folder;
  std::string path;
  std::vector<std::vector<float>> kept;
  std::vector<ExpertWeights> experts;
  FaultyCalls calls;
};

std::vector<int32_t> random_experts(std::mt19937_64& random, size_t most) {
  std::vector<int32_t> all(kExperts);
  for (int32_t e = 0; e < kExperts; ++e) all[size_t(e)] = e;
  std::shuffle(all.begin(), all.end(), random);
  all.resize(random() % (most + 1));
  std::sort(all.begin(), all.end());
  return all;
}

bool same_expert(const ExpertWeights& a, const ExpertWeights& b) {
  return same_weights(a.gate, b.gate) && same_weights(a.up, b.up) && same_weights(a.down, b.down);
}

// Takes all experts of the lease and checks their values.
void take_all(Fixture& f, ExpertStore& store, int64_t layer, const std::vector<int32_t>& active) {
  std::vector<int32_t> given;
  for (auto list = store.next(); !list.empty(); list = store.next())
    for (const int32_t e : list) {
      given.push_back(e);
      CHECK(same_expert(store.experts(layer)[size_t(e)], f.expert(layer, e)));
    }
  std::sort(given.begin(), given.end());
  CHECK(given == active);
}

// `complete`: no step ends early. `hints`: reads begin before they are known to be needed.
void walk(const std::string& policy, int64_t slots, int64_t spare, bool complete, bool hints) {
  Fixture f;
  f.calls.most_delay_us = 30;
  const auto file = f.open();
  const int64_t slot = file->max_record_bytes(), kept_back = std::clamp<int64_t>(spare, 1, std::max<int64_t>(1, slots / 4));
  ExpertStore store(file, parse_residency(policy), slots * slot + slot - 1, spare,
                    {.reader = {.num_threads = 3, .piece_bytes = kPage}});
  Residency expected(parse_residency(policy), uniform_quota(slots - kept_back, 3, kExperts), kExperts);
  CHECK_EQ(store.num_layers(), 3);
  std::mt19937_64 random(uint64_t(slots * 10 + spare));
  int64_t hits = 0, misses = 0, bytes = 0;
  for (int step = 0; step < 250; ++step) {
    const int64_t layer = int64_t(random() % 3);
    const bool learn = random() % 4 != 0;
    const auto active = random_experts(random, random() % 2 ? kExperts : 3);
    for (const int32_t e : active) {
      const bool hit = expected.cost(layer)[size_t(e)] == 0;
      ++(hit ? hits : misses);
      if (!hit) bytes += file->layout(kLayers[layer], e).bytes();
    }
    if (hints && random() % 2) store.hint(random() % 4 ? layer : int64_t(random() % 3), random_experts(random, kExperts));
    const auto wanted = random() % 2 ? active : random_experts(random, 3);  // before selection
    const auto lease = store.acquire(layer, active, wanted, learn);
    if (learn) expected.update(layer, active, wanted);
    if (hints && random() % 2) store.hint((layer + 1) % 3, random_experts(random, kExperts));
    if (complete || random() % 8 != 0) take_all(f, store, layer, active);
    for (int64_t l = 0; l < 3; ++l) CHECK(std::equal(store.cost(l).begin(), store.cost(l).end(), expected.cost(l).begin()));
  }
  const ExpertStoreStats stats = store.stats();
  CHECK_EQ(stats.num_slots, slots);
  CHECK(stats.num_resident <= slots - kept_back);
  CHECK_EQ(stats.num_failed, 0);
  CHECK(stats.prefetch_used <= stats.prefetched && (stats.prefetched > 0) == hints);
  if (!complete) return;
  CHECK_EQ(stats.hits, hits);
  CHECK_EQ(stats.misses, misses);
  CHECK_EQ(stats.bytes_read, bytes);
  CHECK(stats.decode_misses < misses && stats.decode_hits <= hits);
}

// Returns the copy of an expert, which can be told from it by dtype and values: the begin of the next expert's values as bfloat16.
ExpertWeights copy_of(const Fixture& f, int64_t layer, int32_t e) {
  ExpertWeights copy = f.expert(layer, (e + 1) % int32_t(kExperts));
  for (WeightView* v : {&copy.gate, &copy.up, &copy.down}) v->dtype = DType::kBF16;
  return copy;
}

std::shared_ptr<const LowExperts> make_copies(const Fixture& f, const ExpertFile& file) {
  auto low = std::make_shared<LowExperts>(3 * kExperts * file.max_record_bytes());
  uint8_t* record = low->memory;
  for (int64_t l = 0; l < 3; ++l)
    for (int32_t e = 0; e < kExperts; ++e, record += file.max_record_bytes()) {
      const ExpertWeights copy = copy_of(f, l, e);
      const RecordLayout layout(copy);
      layout.write(copy, record);
      if (e == 0) low->experts.emplace_back();
      low->experts.back().push_back(layout.view(record));
    }
  return low;
}

// Computation is so much faster than the disk, or slower, that newcomers arrive late, or never do; or either happens by chance.
enum class Pace { kAny, kFast, kSlow };

// With copies, which experts are computed from them is what the history of routing gives, whatever the delays and failures of reads. An
// expert has the form that it is computed in from the begin of the lease on, since rows are packed for it then.
void walk_with_copies(const std::string& policy, int64_t slots, Pace pace, bool failures) {
  Fixture f;
  f.calls.most_delay_us = pace == Pace::kSlow ? 0 : 300;
  f.calls.slow_every = pace == Pace::kAny ? 31 : 0;
  f.calls.fail_every = failures ? 29 : 0;
  const auto file = f.open();
  const int64_t slot = file->max_record_bytes(), spare = 1;
  ExpertStoreOptions options{.reader = {.num_threads = 3, .piece_bytes = kPage}};
  options.low = make_copies(f, *file);
  ExpertStore store(file, parse_residency(policy), options.low->bytes + slots * slot + slot - 1, spare, options);
  Residency expected(parse_residency(policy), uniform_quota(slots - spare, 3, kExperts), kExperts);
  std::mt19937_64 random(uint64_t(slots * 10));
  int64_t hits = 0, misses = 0, failed = 0;
  const auto pause = [&] {
    if (pace == Pace::kSlow || (pace == Pace::kAny && random() % 16 == 0))
      std::this_thread::sleep_for(std::chrono::microseconds(500));
  };
  for (int step = 0; step < (pace == Pace::kAny ? 400 : 150); ++step) {
    const int64_t layer = int64_t(random() % 3);
    const bool learn = random() % 4 != 0;
    const auto active = random_experts(random, random() % 2 ? kExperts : 3);
    const auto wanted = random() % 2 ? active : random_experts(random, 3);
    pause();
    const std::vector<uint8_t> cost(expected.cost(layer).begin(), expected.cost(layer).end());
    for (const int32_t e : active) ++(cost[size_t(e)] == 0 ? hits : misses);
    {
      const auto lease = store.acquire(layer, active, wanted, learn);
      if (learn) expected.update(layer, active, wanted);
      store.check_integrity();
      const auto is_copy = [&](int32_t e) { return store.experts(layer)[size_t(e)].gate.dtype == DType::kBF16; };
      for (const int32_t e : active) CHECK_EQ(is_copy(e), cost[size_t(e)] != 0);
      pause();
      try {
        for (auto list = store.next(); random() % 32 != 0 && !list.empty(); list = store.next())
          for (const int32_t e : list)
            CHECK(same_expert(store.experts(layer)[size_t(e)], cost[size_t(e)] == 0 ? f.expert(layer, e) : copy_of(f, layer, e)));
      } catch (const StepError& e) {
        CHECK(failures);
        ++failed;
      }
      store.check_integrity();
    }
    store.check_integrity();
    for (int64_t l = 0; l < 3; ++l) CHECK(std::equal(store.cost(l).begin(), store.cost(l).end(), expected.cost(l).begin()));
  }
  const ExpertStoreStats stats = store.stats();
  CHECK_EQ(stats.num_slots, slots);
  CHECK_EQ(stats.low_bytes, 3 * kExperts * slot);
  CHECK_EQ(stats.hits, hits);
  CHECK_EQ(stats.misses, misses);
  CHECK(stats.num_failed >= failed && (failures || stats.num_failed == 0));  // reads that fail at the same time end one step
  CHECK(stats.late <= hits);
  if (policy.starts_with("none")) CHECK_EQ(stats.bytes_read, 0);
  if (pace == Pace::kAny && !policy.starts_with("none")) CHECK(stats.bytes_read > 0);
}

void test_copies() {
  for (const char* policy : {"lfu:miss=low", "lru:miss=low", "random:miss=low", "none:miss=low", "hi_lo:period=1",
                             "hi_lo:decay=0.9,period=7,hysteresis=1,inflight=2"})
    for (const int64_t slots : {2, 9, 20})
      for (const Pace pace : {Pace::kAny, Pace::kFast, Pace::kSlow})
        for (const bool failures : {false, true}) walk_with_copies(policy, slots, pace, failures);
  Fixture f;
  const auto file = f.open();
  ExpertStoreOptions options;
  options.low = make_copies(f, *file);
  const int64_t least = options.low->bytes + 2 * file->max_record_bytes();
  CHECK_THROWS(ExpertStore(file, parse_residency("hi_lo"), least - 1, 1, options), ErrorCode::kInvalidArgument, "expert_memory",
               {str_cat(least), "beside their copies"});
}

void test_walks() {
  for (const char* policy : {"lfu", "random", "none"})
    for (const int64_t slots : {2, 3, 9, 20})
      for (const int64_t spare : {0, 2, 100})
        for (const bool hints : {false, true}) walk(policy, slots, spare, (slots + spare) % 2 == 0, hints);
}

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
constexpr int kEvents = 10'000;
#else
constexpr int kEvents = 100'000;
#endif

// Every slot has one owner after every event: hint, acquire, next, release, in random order; some steps end early.
void test_accounting_of_a_long_walk() {
  Fixture f;
  f.calls.interrupt_every = 7;
  f.calls.most_bytes = 3000;
  const auto file = f.open();
  const int64_t slots = 14, budget = slots * file->max_record_bytes() + 5;
  ExpertStore store(file, parse_residency("lfu:decay=0.9"), budget, 3, {.reader = {.num_threads = 3, .piece_bytes = kPage}});
  std::mt19937_64 random(11);
  ExpertStore::Lease lease;
  bool leased = false, more = false;
  int64_t layer = 0;
  for (int event = 0; event < kEvents; ++event) {
    if (random() % 4 == 0) {
      store.hint(int64_t(random() % 3), random_experts(random, kExperts));
    } else if (!leased) {
      layer = int64_t(random() % 3);
      const auto active = random_experts(random, random() % 8 ? 4 : kExperts);
      lease = store.acquire(layer, active, active, random() % 8 != 0);
      leased = more = true;
    } else if (more && random() % 16 != 0) {
      const auto given = store.next();
      more = !given.empty();
      for (const int32_t e : given) CHECK(same_expert(store.experts(layer)[size_t(e)], f.expert(layer, e)));
    } else {
      lease = {};
      leased = false;
    }
    store.check_integrity();
  }
  const ExpertStoreStats stats = store.stats();
  CHECK_EQ(stats.num_slots, slots);
  CHECK(stats.num_slots * stats.slot_bytes <= budget);
  CHECK(stats.misses > kEvents / 20 && stats.hits > kEvents / 20 && stats.prefetch_used > 0);
}

// Returns the text of the error with which next() ends, "" for none.
std::string error_of_next(Fixture& f, ExpertStore& store, const std::vector<int32_t>& active) {
  const auto lease = store.acquire(1, active, active, true);
  try {
    take_all(f, store, 1, active);
  } catch (const StepError& e) {
    CHECK_EQ(e.field(), "expert_file");
    return str_cat(int(e.code()), " ", e.what());
  }
  return "";
}

bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

void test_failing_reads() {
  Fixture f;
  const auto file = f.open();
  ExpertStore store(file, parse_residency("lfu"), 9 * file->max_record_bytes(), 2,
                    {.reader = {.num_threads = 1, .piece_bytes = kPage}});
  const std::vector<int32_t> active{1, 4, 5, 8};
  f.calls.fail_from = f.calls.num_reads + 3, f.calls.num_fails = 2;  // one retry fails as well
  const std::string text = error_of_next(f, store, active);
  CHECK(has(text, str_cat(int(ErrorCode::kDevice), " ", f.path, ": cannot read at byte ")) && has(text, "errno 5"));
  CHECK_EQ(store.stats().num_failed, 1);
  CHECK_EQ(error_of_next(f, store, active), "");  // the store goes on, with the right values
  f.calls.fail_from = -1;

  f.calls.size = file->record(2, 6).offset + kPage;
  CHECK(has(error_of_next(f, store, {6}), str_cat(int(ErrorCode::kCorruptFile), " ", f.path, ": was cut off")));
  f.calls.size = INT64_MAX;
  CHECK_EQ(error_of_next(f, store, {6}), "");
}

void test_damaged_record() {
  Fixture f;
  const auto file = f.open();
  ExpertStore store(file, parse_residency("lru"), 9 * file->max_record_bytes(), 2);
  store.check_unchanged();
  std::fstream(f.path, std::ios::in | std::ios::out | std::ios::binary).seekp(file->record(2, 3).offset + 64).put('!');
  CHECK(has(error_of_next(f, store, {2, 3}), "expected the CRC-32C"));
  CHECK_EQ(error_of_next(f, store, {2}), "");
  CHECK_THROWS(store.check_unchanged(), ErrorCode::kCorruptFile, f.path, {"was written to"});
}

// A prefetch that failed is read again when it is needed.
void test_failing_prefetch() {
  Fixture f;
  const auto file = f.open();
  ExpertStore store(file, parse_residency("lfu"), 9 * file->max_record_bytes(), 2,
                    {.reader = {.num_threads = 1, .piece_bytes = kPage}});
  f.calls.fail_from = f.calls.num_reads, f.calls.num_fails = 2;
  store.hint(1, std::vector<int32_t>{4, 7});
  while (f.calls.num_reads < f.calls.fail_from + 4) std::this_thread::yield();
  CHECK_EQ(error_of_next(f, store, {4, 5}), "");
  CHECK_EQ(store.stats().prefetched, 2);
}

// A step that fails for another reason leaves a read behind, whose slot no other expert may get before it has ended.
void test_lease_that_ends_early() {
  Fixture f;
  const auto file = f.open();
  ExpertStore store(file, parse_residency("lfu"), 2 * file->max_record_bytes(), 1,
                    {.reader = {.num_threads = 2, .piece_bytes = kPage}});
  f.calls.hang_at = file->record(0, 0).offset;
  std::thread later;
  {
    const std::vector<int32_t> active{0, 1, 2};
    const auto lease = store.acquire(0, active, active, true);
    f.calls.wait_until_hanging();
    later = std::thread([&] { f.calls.release(); });
  }
  later.join();
  const std::vector<int32_t> active{0, 1, 2, 3};
  const auto lease = store.acquire(0, active, active, true);
  take_all(f, store, 0, active);
}

// A read that hangs ends the steps that wait for it, and no others, although it fills the reader's depth.
void test_hanging_reads() {
  Fixture f;
  auto file = f.open();
  const std::weak_ptr<const DirectFile> used = file->file();
  std::vector<std::string> reports;
  auto store =
      std::make_unique<ExpertStore>(file, parse_residency("lfu"), 6 * file->max_record_bytes(), 2,
                                    ExpertStoreOptions{.reader = {.num_threads = 3, .depth = 1, .piece_bytes = kPage},
                                                       .io_timeout_s = 0.2,
                                                       .report_after_s = 0.05,
                                                       .on_report = [&](const std::string& s) { reports.push_back(s); }});
  const int64_t offset = file->record(2, 3).offset;
  f.calls.hang_at = offset;
  const std::string said =
      str_cat(f.path, ": the read of ", file->layout(2, 3).bytes(), " bytes at byte ", offset, " has not ended after ");
  for (int hung = 1; hung <= 2; ++hung) {  // twice: a step that needs it again begins another read
    const double start = now();
    CHECK_EQ(error_of_next(f, *store, {3, 5}), str_cat(int(ErrorCode::kDevice), " ", said, "0.2 seconds (io_timeout_s)"));
    CHECK(now() - start < 10);
    CHECK_EQ(error_of_next(f, *store, {0, 1, 2, 4, 5, 6, 7, 8}), "");  // in slots that are left
    CHECK_EQ(reports.size(), size_t(hung));
    CHECK_EQ(reports.back(), said + "0.05 seconds; a step waits for it");
    CHECK_EQ(store->stats().num_failed, hung);
  }
  f.calls.hang_at = -1;
  CHECK_EQ(error_of_next(f, *store, {3}), "");  // the disk works again; two threads still hang
  const double start = now();
  store.reset();
  CHECK(now() - start < 10);
  f.calls.release();
  file.reset();
  while (f.calls.num_reading > 0 || !used.expired()) std::this_thread::yield();
}

// Without a time limit, a step waits for a read that hangs, reports it once, and goes on.
void test_a_read_that_takes_long() {
  Fixture f;
  const auto file = f.open();
  int reports = 0;
  ExpertStoreOptions options;
  options.report_after_s = 0.01;
  options.on_report = [&](const std::string&) {
    if (++reports == 1) f.calls.release();
  };
  ExpertStore store(file, parse_residency("lfu"), 4 * file->max_record_bytes(), 2, std::move(options));
  f.calls.hang_at = file->record(2, 3).offset;
  CHECK_EQ(error_of_next(f, store, {3, 5}), "");
  CHECK_EQ(reports, 1);
  CHECK(store.stats().wait_seconds >= 0.01);
}

void test_limits() {
  Fixture f;
  const auto file = f.open();
  const int64_t slot = file->max_record_bytes();
  CHECK_THROWS(ExpertStore(file, parse_residency("lfu"), 2 * slot - 1, 4), ErrorCode::kInvalidArgument, "expert_memory",
               {"room for two experts"});
  CHECK_THROWS(ExpertStore(file, parse_residency("ring"), 4 * slot, 4), ErrorCode::kUnsupported, "expert_policy",
               {"lfu, lru", "simulations"});
}

}  // namespace

int main() {
  test_walks();
  test_copies();
  test_accounting_of_a_long_walk();
  test_failing_reads();
  test_failing_prefetch();
  test_damaged_record();
  test_lease_that_ends_early();
  test_hanging_reads();
  test_a_read_that_takes_long();
  test_limits();
  return check::result("test_expert_store");
}
