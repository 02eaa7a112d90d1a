// Tests csrc/engine/admission.h, and the orders in which a scheduler admits requests by it.
#include "engine/admission.h"

#include <algorithm>
#include <map>
#include <random>
#include <set>

#include "check.h"
#include "engine/scheduler.h"

using namespace lynx_rt;

namespace {

using Ids = std::vector<int32_t>;

std::unique_ptr<Request> make_request(uint64_t id, Ids prompt, int32_t priority = 0) {
  auto r = std::make_unique<Request>();
  r->id = id;
  r->params.priority = priority;
  r->prompt_len = int64_t(prompt.size());
  r->tokens = std::move(prompt);
  return r;
}

// A prompt of a kind: tokens that other kinds do not have, in an order of its own.
Ids prompt_of(int32_t kind, uint64_t id) {
  Ids out;
  for (int32_t i = 0; i < 6; ++i) out.push_back(1000 * kind + int32_t((id * 7 + uint64_t(i) * 3) % 10));
  return out;
}

void test_parse() {
  CHECK(!parse_admission("first_come").affinity);
  const AdmissionRule plain = parse_admission("affinity");
  CHECK(plain.affinity);
  CHECK_EQ(plain.window, 128);
  CHECK_EQ(plain.skips, 128);
  CHECK_EQ(plain.ms, 0);
  const AdmissionRule rule = parse_admission("affinity:ms=250,window=3,skips=0");
  CHECK_EQ(rule.window, 3);
  CHECK_EQ(rule.skips, 0);
  CHECK_EQ(rule.ms, 250);
  const std::pair<const char*, const char*> wrong[] = {
      {"", "got \"\""},
      {"lifo", "expected first_come or affinity, got \"lifo\""},
      {"first_come:skips=1", "expected first_come, or affinity with keys"},
      {"affinity:", "keys window, skips and ms"},
      {"affinity:skips=1,", "keys window, skips and ms"},
      {"affinity:age=1", "keys window, skips and ms"},
      {"affinity:window=0", "window: expected a whole number from 1"},
      {"affinity:skips", "skips: expected a whole number from 0"},
      {"affinity:skips=-1", "got \"-1\""},
      {"affinity:skips=1.5", "got \"1.5\""},
      {"affinity:ms=1e12", "got \"1e12\""},
      {"affinity:ms=nan", "got \"nan\""},
  };
  for (const auto& [text, said] : wrong) CHECK_THROWS(parse_admission(text), ErrorCode::kInvalidArgument, "admission", {said});
}

void test_signatures() {
  Admission admission({true});
  auto a = make_request(1, {5, 5, 5}), b = make_request(2, {9, 5, 9, 5}), c = make_request(3, {5, 9});
  for (const auto& r : {a.get(), b.get(), c.get()}) admission.add(*r);
  CHECK_EQ(a->signature.size(), Admission::kBuckets);
  CHECK_EQ(std::count(a->signature.begin(), a->signature.end(), 4096), 1);  // one bucket, of length 4096
  CHECK_EQ(std::count(a->signature.begin(), a->signature.end(), 0), 255);
  CHECK_EQ(std::count(c->signature.begin(), c->signature.end(), 2896), 2);  // 4096 / sqrt(2)
  CHECK(b->signature == c->signature);                                      // neither order nor length counts
  Admission off({});
  auto d = make_request(4, {5});
  off.add(*d);
  CHECK(d->signature.empty());
}

// A scheduler whose requests generate `length` tokens each.
struct Lives {
  Lives(const std::string& admission, int64_t places, int64_t pages = 4096, bool mixed = true)
      : backend(make_backend({"cpu", DType::kF32, 1, ""})),
        pool(pages, 4, false),
        windows(PageGroups{{PageGroup{}}, {}}, {}, 4, false),
        states(*backend, {}, 0),
        scheduler(pool, windows, states, places, 64, mixed, parse_admission(admission)) {}

  void add(int32_t kind, int64_t length, int32_t priority = 0, double arrival = 0) {
    const uint64_t id = next_id++;
    lengths[id] = length;
    auto r = make_request(id, prompt_of(kind, id), priority);
    r->arrival_time = arrival;
    scheduler.add(std::move(r));
  }
  // Runs a step, and notes which requests began in it.
  void step(double now = 0) {
    const ScheduledStep s = scheduler.schedule(now);
    std::vector<uint64_t> ended;
    for (const ScheduledRequest& part : s.requests) {
      Request& r = *part.request;
      if (began.insert(r.id).second) order.push_back(r.id);
      scheduler.advance(r, part.num_tokens, true);
      if (r.num_computed < int64_t(r.tokens.size())) continue;
      r.tokens.push_back(1);
      if (r.num_generated() >= lengths[r.id]) ended.push_back(r.id);
    }
    for (const uint64_t id : ended) scheduler.remove(id);
    scheduler.check_integrity();
  }
  void finish() {
    for (int i = 0; i < 100000 && scheduler.num_running() + scheduler.num_waiting() > 0; ++i) step();
    CHECK_EQ(scheduler.num_running() + scheduler.num_waiting(), 0);
  }

  std::unique_ptr<Backend> backend;
  BlockPool pool;
  WindowPages windows;
  StateCache states;
  Scheduler scheduler;
  std::map<uint64_t, int64_t> lengths;
  std::set<uint64_t> began;
  std::vector<uint64_t> order;
  uint64_t next_id = 1;
};

void test_like_prompts_run_together() {
  Lives lives("affinity", 2), plain("first_come", 2);
  for (Lives* l : {&lives, &plain}) {
    for (int32_t i = 0; i < 12; ++i) l->add(1 + i % 3, 3 + i % 2);
    l->finish();
  }
  CHECK(plain.order == (std::vector<uint64_t>{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}));
  CHECK_EQ(lives.order.size(), 12);
  int same = 0;
  for (size_t i = 0; i + 1 < 12; ++i) same += lives.order[i] % 3 == lives.order[i + 1] % 3;
  CHECK_EQ(same, 9);  // four of a kind after another, three kinds
}

void test_bounds() {
  // The second kind has one request, which those of the first kind pass over as often as the bound allows.
  for (const int64_t skips : {0, 1, 3, 7}) {
    Lives lives("affinity:skips=" + std::to_string(skips), 2);
    lives.add(1, 5);
    lives.add(1, 3);
    lives.add(2, 2);
    for (int i = 0; i < 20; ++i) lives.add(1, 2 + i % 2);
    lives.finish();
    CHECK_EQ(std::find(lives.order.begin(), lives.order.end(), 3u) - lives.order.begin(), 2 + skips);
  }
  // The window: request 9 is alike, but beyond it.
  Lives narrow("affinity:window=3", 2);
  narrow.add(1, 9);
  for (int i = 0; i < 7; ++i) narrow.add(2, 2);
  narrow.add(1, 2);
  narrow.step();
  CHECK(narrow.order == (std::vector<uint64_t>{1, 2}));
  // The time: once the head waits for 100 ms it goes next.
  Lives timed("affinity:ms=100", 2);
  timed.add(1, 20);
  timed.add(1, 2);
  timed.add(2, 2, 0, 0.0);
  for (int i = 0; i < 4; ++i) timed.add(1, 2);
  timed.step(0.0);
  timed.step(0.05);
  timed.step(0.05);
  CHECK(timed.order == (std::vector<uint64_t>{1, 2, 4}));
  timed.step(0.0999);
  timed.step(0.1);
  CHECK(timed.order.back() == 3u);
}

void test_priorities_go_first() {
  Lives lives("affinity", 2);
  lives.add(1, 9);
  lives.add(1, 2, 1);
  lives.add(2, 2, -1);
  lives.add(2, 2, 0);
  lives.finish();
  CHECK(lives.order == (std::vector<uint64_t>{3, 4, 1, 2}));  // 4 is like 3; 2 has a lower priority
}

// Order of admission, whatever comes when: of each priority, at most `skips` later requests begin before an earlier one, and the same history gives the same
// order.
void test_random_histories() {
  int64_t overtaken = 0, preemptions = 0;
  for (uint32_t seed = 0; seed < 60; ++seed) {
    const int64_t skips = seed % 7;
    std::vector<uint64_t> orders[2];
    for (std::vector<uint64_t>& order : orders) {
      std::mt19937 random(seed);
      const uint32_t window = 1 + random() % 40, places = 1 + random() % 5;
      Lives lives("affinity:window=" + std::to_string(window) + ",skips=" + std::to_string(skips), places, seed % 3 ? 4096 : 10,
                  seed % 2 == 0);
      std::map<uint64_t, int32_t> priority;
      for (int i = 0; i < 60; ++i) {
        for (uint32_t n = random() % 3; n > 0; --n) {
          priority[lives.next_id] = int32_t(random() % 2);
          lives.add(int32_t(random() % 3), 1 + random() % 9, priority[lives.next_id]);
        }
        lives.step();
      }
      preemptions += lives.scheduler.num_preemptions();
      lives.finish();
      order = lives.order;
      CHECK_EQ(order.size(), priority.size());
      for (size_t i = 0; i < order.size(); ++i) {
        const int64_t before = std::count_if(order.begin(), order.begin() + std::ptrdiff_t(i), [&](uint64_t other) {
          return other > order[i] && priority[other] == priority[order[i]];
        });
        CHECK(before <= skips);
        overtaken += before;
      }
    }
    CHECK(orders[0] == orders[1]);
  }
  std::cerr << overtaken << " overtaken, " << preemptions << " preemptions\n";
  CHECK(overtaken > 500 && preemptions > 50);
}

}  // namespace

int main() {
  test_parse();
  test_signatures();
  test_like_prompts_run_together();
  test_bounds();
  test_priorities_go_first();
  test_random_histories();
  return check::result("test_admission");
}
