// Tests csrc/engine/scheduler.h: the rows whose logits a step needs, the effect of rollback() on pages and states, and prefixes of requests
// that have states.
#include "engine/scheduler.h"

#include <cstring>
#include <map>
#include <random>

#include "check.h"

using namespace lynx_rt;

namespace {

using Ids = std::vector<int32_t>;

std::unique_ptr<Backend> cpu() { return make_backend({"cpu", DType::kF32, 1, ""}); }

std::unique_ptr<Request> make_request(uint64_t id, Ids prompt, int prompt_logprobs = -1) {
  auto r = std::make_unique<Request>();
  r->id = id;
  r->params.prompt_logprobs = prompt_logprobs;
  r->prompt_len = int64_t(prompt.size());
  r->tokens = std::move(prompt);
  return r;
}

// Returns rows as {request, row, is_sampled}.
std::vector<std::vector<int64_t>> rows_of(const ScheduledStep& step) {
  std::vector<std::vector<int64_t>> out;
  for (const LogitRow& row : step.logit_rows) out.push_back({int64_t(row.request), row.row, row.is_sampled});
  return out;
}
using Rows = std::vector<std::vector<int64_t>>;

void advance_all(Scheduler& scheduler, const ScheduledStep& step) {
  for (const ScheduledRequest& s : step.requests) scheduler.advance(*s.request, s.num_tokens, true);
}

void test_logit_rows() {
  const auto backend = cpu();
  BlockPool pool(64, 4, true);
  StateCache states(*backend, {}, 0);
  Scheduler scheduler(pool, states, 8, 8, true);
  scheduler.add(make_request(1, {1, 2, 3}));
  scheduler.add(make_request(2, {4, 5, 6, 7, 8, 9, 10}, 0));
  // The step has all of the first prompt, and five tokens of the second, each followed by one whose log probability is asked for.
  ScheduledStep step = scheduler.schedule();
  CHECK(step.phase == Phase::kPrefill);
  CHECK(rows_of(step) == (Rows{{1, 0, 0}, {1, 1, 0}, {1, 2, 0}, {1, 3, 0}, {1, 4, 0}, {0, 2, 1}}));
  advance_all(scheduler, step);
  Request& first = *scheduler.find_running(1);
  Request& second = *scheduler.find_running(2);
  first.tokens.push_back(11);
  // The last prompt token but one has the last one's log probability, the last one has the logits of the next token.
  step = scheduler.schedule();
  CHECK(step.phase == Phase::kMixed);
  CHECK(rows_of(step) == (Rows{{1, 0, 0}, {0, 0, 1}, {1, 1, 1}}));
  advance_all(scheduler, step);
  // Three drafts give four rows to draw after, in a decode-only step.
  first.tokens.insert(first.tokens.end(), {12, 13, 14, 15});
  first.num_drafts = 3;
  second.tokens.push_back(11);
  step = scheduler.schedule();
  CHECK(step.phase == Phase::kDecodeOnly);
  CHECK_EQ(step.num_rows, 5);
  CHECK(rows_of(step) == (Rows{{0, 0, 1}, {0, 1, 1}, {0, 2, 1}, {0, 3, 1}, {1, 0, 1}}));
  // A budget of eight rows cuts the drafts of the second request.
  second.tokens.insert(second.tokens.end(), {12, 13, 14, 15, 16});
  second.num_drafts = 5;
  step = scheduler.schedule();
  CHECK(step.phase == Phase::kDecodeOnly);
  CHECK_EQ(step.num_rows, 8);
  CHECK(rows_of(step) == (Rows{{0, 0, 1}, {0, 1, 1}, {0, 2, 1}, {0, 3, 1}, {1, 0, 1}, {1, 1, 1}, {1, 2, 1}, {1, 3, 1}}));
  advance_all(scheduler, step);
  first.tokens.push_back(16);
  first.num_drafts = 0;
  step = scheduler.schedule();
  CHECK(step.phase == Phase::kDecodeOnly);
  CHECK(rows_of(step) == (Rows{{0, 0, 1}, {1, 0, 1}, {1, 1, 1}}));
}

void test_rollback_leaves_no_content() {
  const auto backend = cpu();
  BlockPool pool(16, 4, true);
  StateCache states(*backend, {}, 0);
  Scheduler scheduler(pool, states, 4, 64, true);
  const Ids prompt = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13};
  scheduler.add(make_request(1, prompt));
  advance_all(scheduler, scheduler.schedule());
  Request& r = *scheduler.find_running(1);
  const auto cached_pages = [&](const Ids& tokens) {
    const BlockPool::Match match = pool.match_prefix(tokens, 8);
    pool.release(match.blocks);
    return int64_t(match.blocks.size());
  };
  CHECK_EQ(cached_pages(prompt), 3);
  CHECK_EQ(pool.num_free(), 12);
  scheduler.rollback(r, 0);
  CHECK_EQ(cached_pages(prompt), 3);
  scheduler.rollback(r, 2);  // to the end of the third page
  CHECK_EQ(r.num_computed, 12);
  CHECK_EQ(cached_pages(prompt), 3);
  CHECK_EQ(pool.num_free(), 13);
  scheduler.rollback(r, 5);  // three tokens of the second page are left
  CHECK_EQ(r.num_computed, 7);
  CHECK_EQ(cached_pages(prompt), 1);
  CHECK_EQ(pool.num_free(), 14);
  pool.check_integrity(scheduler.held_blocks());
  // Pages that are computed again are found again.
  CHECK_EQ(scheduler.schedule().num_rows, 7);
  scheduler.advance(r, 7, true);
  CHECK_EQ(cached_pages(prompt), 3);
  CHECK_THROWS(scheduler.rollback(r, 15), ErrorCode::kInternal, "rollback", {"expected 0 to 14 tokens of request 1, got 15"});
  // A page that another request reads is not written again: the request releases it.
  scheduler.add(make_request(2, prompt));
  advance_all(scheduler, scheduler.schedule());
  const Ids shared = scheduler.find_running(2)->blocks;
  CHECK_EQ(scheduler.find_running(2)->num_cached_tokens, 12);
  scheduler.rollback(r, 8);  // two tokens of the second page
  CHECK_EQ(r.num_computed, 4);
  CHECK_EQ(r.blocks, Ids{shared[0]});
  CHECK_EQ(cached_pages(prompt), 3);
  pool.check_integrity(scheduler.held_blocks());
}

// A page that nothing refers to hands its content to one that a request holds, which is not reused before the request ends.
void test_content_moves_to_a_held_page() {
  BlockPool pool(3, 4, true);
  const Ids tokens = {1, 2, 3, 4};
  Ids first, second, others;
  CHECK(pool.allocate(1, first) && pool.allocate(1, second));
  const ContentId content = pool.register_block(first[0], kNoContent, tokens);
  CHECK_EQ(pool.register_block(second[0], kNoContent, tokens), content);
  CHECK_EQ(pool.match_prefix(tokens, 1).blocks, first);  // both are held
  pool.release(std::vector<int32_t>{first[0], first[0]});
  CHECK_EQ(pool.register_block(second[0], kNoContent, tokens), content);
  CHECK(pool.allocate(2, others));
  CHECK_EQ(pool.match_prefix(tokens, 1).blocks, second);
  pool.check_integrity(std::vector<int32_t>{second[0], second[0], others[0], others[1]});
}

// Requests with states begin at snapshots: at the last page boundary of a prompt that the same prompt can begin at, and where a request has
// left the tokens that it shares with others. Rows of a step end there.
void test_prefixes_of_states() {
  const auto backend = cpu();
  BlockPool pool(32, 4, true);
  StateCache states(*backend, std::vector<int64_t>{8}, 5);
  Scheduler scheduler(pool, states, 2, 64, true);
  uint64_t next_id = 1;
  // Returns the cached tokens of a prompt, then the rows of each of its steps.
  const auto run = [&](Ids prompt, int prompt_logprobs = -1) {
    const uint64_t id = next_id++;
    scheduler.add(make_request(id, std::move(prompt), prompt_logprobs));
    std::vector<int64_t> rows;
    ScheduledStep step = scheduler.schedule();
    const Request& r = *scheduler.find_running(id);
    rows.push_back(r.num_cached_tokens);
    while (true) {
      rows.push_back(step.num_rows);
      advance_all(scheduler, step);
      scheduler.check_integrity();
      if (r.num_pending() == 0) break;
      step = scheduler.schedule();
    }
    scheduler.remove(id);
    scheduler.check_integrity();
    return rows;
  };
  using Numbers = std::vector<int64_t>;
  CHECK_EQ(run({0, 1, 2}), (Numbers{0, 3}));
  CHECK_EQ(run({0, 1, 2, 3}), (Numbers{0, 4}));
  const Ids prompt = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13};
  CHECK_EQ(run(prompt), (Numbers{0, 4, 8, 2}));  // the first page is that of the prompt before, which kept no state
  CHECK_EQ(run(prompt), (Numbers{12, 2}));
  CHECK_EQ(run(prompt, 0), (Numbers{0, 12, 2}));  // every token's logits are needed
  CHECK_EQ(run({0, 1, 2, 3, 4, 5, 6, 7, 8, 20, 21, 22, 23, 24}), (Numbers{4, 4, 4, 2}));
  CHECK_EQ(run({0, 1, 2, 3, 4, 5, 6, 7, 30}), (Numbers{8, 1}));
  CHECK_EQ(states.num_free(), 1);
  // The snapshot that was used longest ago gives up its slot: here that of four tokens.
  CHECK_EQ(run(prompt), (Numbers{12, 2}));
  CHECK_EQ(run({40, 41, 42, 43, 44, 45, 46, 47, 48}), (Numbers{0, 8, 1}));
  CHECK_EQ(run({0, 1, 2, 3, 50}), (Numbers{0, 4, 1}));
  // A page that is reused takes its snapshot along.
  Ids taken;
  CHECK(pool.allocate(32, taken));
  CHECK_EQ(states.num_free(), 5);
  pool.release(taken);
  CHECK_EQ(run(prompt), (Numbers{0, 12, 2}));
}

// A draft's snapshot in the middle of a page that another request reads is of no use, since that page must not be written to.
void test_rollback_into_a_shared_page() {
  const auto backend = cpu();
  BlockPool pool(32, 4, true);
  StateCache states(*backend, std::vector<int64_t>{8}, 8);
  Scheduler scheduler(pool, states, 4, 6, true);
  const Ids prompt = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13};
  scheduler.add(make_request(1, prompt));
  advance_all(scheduler, scheduler.schedule());
  Request& r = *scheduler.find_running(1);
  char& state = *static_cast<char*>(states.state(0, r.state));
  state = 6;
  CHECK(scheduler.take_snapshot(r));
  advance_all(scheduler, scheduler.schedule());
  CHECK_EQ(r.num_computed, 12);
  state = 12;
  scheduler.rollback(r, 5);  // the pages are the request's alone
  CHECK_EQ(r.num_computed, 6);
  CHECK_EQ(int(state), 6);
  advance_all(scheduler, scheduler.schedule());
  scheduler.add(make_request(2, prompt));
  while (!scheduler.find_running(2)) advance_all(scheduler, scheduler.schedule());
  CHECK_EQ(scheduler.find_running(2)->num_cached_tokens, 12);
  scheduler.rollback(r, 6);
  CHECK_EQ(r.num_computed, 0);
  CHECK_EQ(int(state), 0);
  scheduler.check_integrity();
  // The prompt's snapshot is older than that of a draft, whose tokens may be others by the time that it would be used.
  Request& other = *scheduler.find_running(2);
  CHECK_EQ(other.num_computed, 14);
  CHECK(scheduler.take_snapshot(other));
  scheduler.rollback(other, 1);
  CHECK_EQ(other.num_computed, 12);
  CHECK_EQ(other.snapshot.slot, -1);
  scheduler.check_integrity();
}

// Runs steps like a model, but with hashes: a place of a page holds a hash of all tokens up to its own, a state holds a hash of all
// tokens that went into it, and the next token is a function of the hash.
class World {
 public:
  World(int64_t num_blocks, int64_t block_size, int64_t num_states, bool mixed, uint32_t seed)
      : random_(seed),
        backend_(cpu()),
        pool_(num_blocks, block_size, true),
        states_(*backend_, num_states ? std::span<const int64_t>(kStateBytes) : std::span<const int64_t>(), num_states),
        scheduler_(pool_, states_, 6, 24, mixed),
        memory_(size_t(num_blocks * block_size)) {}

  void run(int count) {
    for (int i = 0; i < count; ++i) add();
    for (int step = 0; scheduler_.num_running() + scheduler_.num_waiting() > 0; ++step) {
      CHECK(step < 100 * count);
      if (step >= 100 * count) return;
      run_step();
      check_integrity();
      disturb();
      check_integrity();
    }
    CHECK_EQ(pool_.num_free(), pool_.num_blocks());
    CHECK_EQ(states_.num_free() + int64_t(scheduler_.held_states().size()), states_.num_slots());
    CHECK_EQ(num_finished_, count);
  }

  int64_t num_rejected = 0, num_accepted = 0, num_rollbacks = 0, num_cached = 0;
  int64_t num_preemptions() const { return scheduler_.num_preemptions(); }

 private:
  static constexpr int64_t kStateBytes[] = {0, 8, 100};

  int64_t below(int64_t n) { return int64_t(random_() % uint64_t(n)); }
  static uint64_t extend(uint64_t hash, int32_t token) { return mix_bits(hash ^ uint64_t(token + 1)); }
  static uint64_t hash_of(std::span<const int32_t> tokens) {
    uint64_t hash = 0;
    for (const int32_t token : tokens) hash = extend(hash, token);
    return hash;
  }
  static int32_t next_of(std::span<const int32_t> tokens) { return int32_t(hash_of(tokens) % 3); }

  void add() {
    Ids prompt(size_t(below(2) ? below(15) : 0), 1);  // requests share beginnings
    for (int64_t i = 0, n = 1 + below(6); i < n; ++i) prompt.push_back(int32_t(below(2)));
    auto r = make_request(next_id_++, prompt, below(4) ? -1 : 0);
    r->max_len = r->prompt_len + 1 + below(20);
    scheduler_.add(std::move(r));
  }

  uint64_t* state_of(const Request& r, int64_t layer) { return static_cast<uint64_t*>(states_.state(layer, r.state)); }

  void run_step() {
    const ScheduledStep step = scheduler_.schedule();
    CHECK(!step.requests.empty());
    for (const ScheduledRequest& s : step.requests)
      for (int64_t i = 0; i < s.num_tokens; ++i) {
        const Request& r = *s.request;
        const int64_t p = r.num_computed + i;
        memory_[place(r, p)] = hash_of(std::span(r.tokens).first(size_t(p + 1)));
        if (states_.empty()) continue;
        for (const int64_t layer : {1, 2}) *state_of(r, layer) = extend(*state_of(r, layer), r.tokens[size_t(p)]);
      }
    std::map<Request*, std::vector<int64_t>> sampled;  // the places of the tokens to draw after
    for (const LogitRow& row : step.logit_rows) {
      Request* r = step.requests[row.request].request;
      if (row.is_sampled) sampled[r].push_back(r->num_computed + row.row);
    }
    for (const ScheduledRequest& s : step.requests) {
      Request& r = *s.request;
      if (r.num_computed == r.num_cached_tokens) num_cached += r.num_cached_tokens;
      scheduler_.advance(r, s.num_tokens, below(4) > 0);
      check_memory(r);
    }
    for (auto& [r, places] : sampled) verify(*r, places);
  }

  size_t place(const Request& r, int64_t p) const {
    return size_t(r.blocks[size_t(p / pool_.block_size())] * pool_.block_size() + p % pool_.block_size());
  }

  // Checks that a request's memory has what the request alone would have written.
  void check_memory(const Request& r) {
    uint64_t hash = 0;
    for (int64_t p = 0; p < r.num_computed; ++p) {
      hash = extend(hash, r.tokens[size_t(p)]);
      CHECK_EQ(memory_[place(r, p)], hash);
    }
    if (states_.empty() || r.state < 0) return;
    for (const int64_t layer : {1, 2}) CHECK_EQ(*state_of(r, layer), hash);
  }

  // Compares drafts with what is drawn, as a speculating engine does.
  void verify(Request& r, const std::vector<int64_t>& places) {
    for (const int64_t p : places) {
      const int32_t token = next_of(std::span(r.tokens).first(size_t(p + 1)));
      if (r.num_drafts > 0 && r.tokens[size_t(p + 1)] == token) {
        --r.num_drafts;
        ++num_accepted;
        continue;
      }
      if (r.num_drafts > 0) {
        ++num_rejected;
        scheduler_.rollback(r, r.num_computed - (p + 1));
        r.tokens.resize(size_t(p + 1));
        r.num_drafts = 0;
      }
      r.tokens.push_back(token);
      break;
    }
    check_memory(r);
    if (int64_t(r.tokens.size()) - r.num_drafts < r.max_len) return;
    Ids alone(r.tokens.begin(), r.tokens.begin() + r.prompt_len);
    while (int64_t(alone.size()) < r.max_len) alone.push_back(next_of(alone));
    CHECK_EQ(Ids(r.tokens.begin(), r.tokens.begin() + r.max_len), alone);
    ++num_finished_;
    scheduler_.remove(r.id);
  }

  // Makes drafts and snapshots and rolls back tokens, between steps.
  void disturb() {
    for (uint64_t id = 1; id < next_id_; ++id) {
      Request* r = scheduler_.find_running(id);
      if (!r) continue;
      if (below(12) == 0) {
        const int64_t n = below(2) ? below(r->num_computed + 1) : std::min<int64_t>(below(4), r->num_computed);
        r->tokens.resize(r->tokens.size() - size_t(std::exchange(r->num_drafts, 0)));
        if (r->num_computed > int64_t(r->tokens.size())) scheduler_.rollback(*r, r->num_computed - int64_t(r->tokens.size()));
        scheduler_.rollback(*r, std::min(n, r->num_computed));
        // Generated tokens that are no longer computed may be dropped, except one, and are generated again.
        if (r->num_computed == int64_t(r->tokens.size())) scheduler_.rollback(*r, 1);
        if (below(2)) r->tokens.resize(size_t(std::max(r->num_computed + 1, r->prompt_len)));
        ++num_rollbacks;
        check_memory(*r);
      } else if (r->num_drafts == 0 && r->is_decoding() && below(2)) {
        CHECK(scheduler_.take_snapshot(*r) || states_.num_free() == 0);
        r->num_drafts = 1 + below(5);
        for (int64_t i = 0; i < r->num_drafts; ++i) r->tokens.push_back(below(5) ? next_of(r->tokens) : int32_t(below(3)));
      } else if (below(10) == 0) {
        scheduler_.take_snapshot(*r);
      }
    }
  }

  void check_integrity() { scheduler_.check_integrity(); }

  std::mt19937 random_;
  std::unique_ptr<Backend> backend_;
  BlockPool pool_;
  StateCache states_;
  Scheduler scheduler_;
  std::vector<uint64_t> memory_;
  uint64_t next_id_ = 1;
  int64_t num_finished_ = 0;
};

void test_random_lives() {
  int64_t rejected = 0, accepted = 0, rollbacks = 0, cached = 0, cached_states = 0, preemptions = 0;
  for (uint32_t seed = 0; seed < 60; ++seed) {
    const int64_t num_states = seed % 4 < 2 ? 0 : seed % 7 ? 10 : 6;  // of six running requests, their drafts and snapshots
    World world(seed % 3 ? 14 : 60, seed % 2 ? 4 : 8, num_states, seed % 5 > 0, seed);
    const int failures = check::failures;
    world.run(40);
    if (check::failures != failures) std::cerr << "  in seed " << seed << "\n";
    rejected += world.num_rejected;
    accepted += world.num_accepted;
    rollbacks += world.num_rollbacks;
    (num_states ? cached_states : cached) += world.num_cached;
    preemptions += world.num_preemptions();
  }
  std::cerr << rejected << " drafts rejected, " << accepted << " accepted, " << rollbacks << " rollbacks, " << cached
            << " tokens from the cache, " << cached_states << " beside states, " << preemptions << " preemptions\n";
  CHECK(rejected > 500 && accepted > 500 && rollbacks > 500 && cached > 500 && cached_states > 500 && preemptions > 100);
}

}  // namespace

int main() {
  test_logit_rows();
  test_rollback_leaves_no_content();
  test_content_moves_to_a_held_page();
  test_prefixes_of_states();
  test_rollback_into_a_shared_page();
  test_random_lives();
  return check::result("test_scheduler");
}
