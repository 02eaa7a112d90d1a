// Tests csrc/engine/scheduler.h: the rows whose logits a step needs, the effect of rollback() on pages and states, and prefixes of requests
// that have states.
#include "engine/scheduler.h"

#include <cstring>

#include "check.h"
#include "scheduler_world.h"

using namespace lynx_rt;
using namespace scheduler_world;

namespace {

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
  WindowPages windows = no_windows();
  Scheduler scheduler(pool, windows, states, 8, 8, true);
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
  WindowPages windows = no_windows();
  Scheduler scheduler(pool, windows, states, 4, 64, true);
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
  WindowPages windows = no_windows();
  Scheduler scheduler(pool, windows, states, 2, 64, true);
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
  WindowPages windows = no_windows();
  Scheduler scheduler(pool, windows, states, 4, 6, true);
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

void test_random_lives() {
  int64_t rejected = 0, accepted = 0, rollbacks = 0, cached = 0, cached_states = 0, cached_windows = 0, freed = 0,
          preemptions = 0;
  for (uint32_t seed = 0; seed < 120; ++seed) {
    const int64_t num_states = seed % 4 < 2 ? 0 : seed % 7 ? 10 : 6;  // of six running requests, their drafts and snapshots
    std::vector<PageGroup> windows;
    if (seed >= 60) windows.push_back({1 + int64_t(seed % 11), 0, 0});
    if (seed >= 60 && seed % 3) windows.push_back({int64_t(seed % 2 * 9), 6, 0});
    World world(seed % 3 ? 14 : 60, seed % 2 ? 4 : 8, num_states, seed % 5 > 0, seed, windows,
                seed % 4 == 3 ? 1 : seed % 4 * 6 + 6);
    const int failures = check::failures;
    world.run(40);
    if (check::failures != failures) std::cerr << "  in seed " << seed << "\n";
    rejected += world.num_rejected;
    accepted += world.num_accepted;
    rollbacks += world.num_rollbacks;
    (num_states ? cached_states : cached) += world.num_cached;
    if (!windows.empty()) cached_windows += world.num_cached;
    freed += world.num_freed;
    preemptions += world.num_preemptions();
  }
  std::cerr << rejected << " drafts rejected, " << accepted << " accepted, " << rollbacks << " rollbacks, " << cached
            << " tokens from the cache, " << cached_states << " beside states, " << cached_windows << " beside windows, " << freed
            << " pages given back, " << preemptions << " preemptions\n";
  CHECK(rejected > 500 && accepted > 500 && rollbacks > 500 && cached > 500 && cached_states > 500 && preemptions > 100);
  CHECK(cached_windows > 500 && freed > 500);
}

// A window's pages are given back behind it, stay in the prefix cache until they are reused, and bound where a prefix may end.
void test_windows() {
  const auto backend = cpu();
  const PageGroup window{6, 0, 0}, chunk{0, 8, 0};
  BlockPool pool(64, 4, true);
  WindowPages windows(page_groups_of({window, chunk}), std::vector<int64_t>{64, 12, 12}, 4, true);
  StateCache states(*backend, {}, 0);
  Scheduler scheduler(pool, windows, states, 4, 8, true);
  Ids prompt;
  for (int32_t t = 0; t < 80; ++t) prompt.push_back(t);
  const auto held = [](const Request& r, size_t g) { return int64_t(r.windows[g].blocks.size() - r.windows[g].num_freed); };
  const auto run = [&](uint64_t id, Ids tokens) {  // returns the tokens that it found
    scheduler.add(make_request(id, std::move(tokens)));
    ScheduledStep step = scheduler.schedule();
    Request& r = *scheduler.find_running(id);
    const int64_t cached = r.num_cached_tokens;
    for (; true; step = scheduler.schedule()) {
      CHECK(held(r, 0) <= most_pages(window, 4, 1, 8) - 1 && held(r, 1) <= most_pages(chunk, 4, 1, 8) - 1);
      advance_all(scheduler, step);
      scheduler.check_integrity();
      if (r.num_pending() == 0) return cached;
    }
  };
  CHECK_EQ(run(1, prompt), 0);
  Request& first = *scheduler.find_running(1);
  CHECK_EQ(first.windows[0].num_freed, 16u);  // its last step began at token 72, which sees tokens from 67 on
  CHECK_EQ(first.windows[1].num_freed, 18u);
  CHECK_EQ(first.windows[0].blocks[15], kFreedBlock);
  scheduler.remove(1);
  CHECK_EQ(run(2, prompt), 76);
  // Tokens from 74 on see none before 69, whose page is held. Of token 70's chunk a page was given back that would be kept in part; tokens
  // from 68 on see 63, whose page is in the cache.
  Request& second = *scheduler.find_running(2);
  scheduler.rollback(second, 6);
  CHECK_EQ(second.num_computed, 74);
  scheduler.check_integrity();
  scheduler.rollback(second, 4);
  CHECK_EQ(second.num_computed, 68);
  scheduler.check_integrity();
  scheduler.remove(2);
  // The 12 pages of a window that were used last are those of the end.
  CHECK_EQ(run(3, Ids(prompt.begin(), prompt.begin() + 21)), 0);
  scheduler.remove(3);
  CHECK_EQ(run(4, Ids(prompt.begin(), prompt.begin() + 21)), 20);
  scheduler.remove(4);
  // Without the cache, a rollback to tokens whose window is gone begins anew.
  BlockPool plain_pool(64, 4, false);
  WindowPages plain_windows(page_groups_of({window, chunk}), std::vector<int64_t>{64, 12, 12}, 4, false);
  Scheduler plain(plain_pool, plain_windows, states, 4, 8, true);
  plain.add(make_request(1, prompt));
  for (int i = 0; i < 10; ++i) advance_all(plain, plain.schedule());
  Request& r = *plain.find_running(1);
  CHECK_EQ(r.num_computed, 80);
  plain.rollback(r, 2);
  CHECK_EQ(r.num_computed, 78);
  plain.check_integrity();
  plain.rollback(r, 30);
  CHECK_EQ(r.num_computed, 0);
  plain.check_integrity();
}

// Without their windows' end a request would need room for all of its tokens in every group.
void test_integrity_finds_a_lost_window() {
  const auto backend = cpu();
  BlockPool pool(16, 4, true);
  WindowPages windows(page_groups_of({{6, 0, 0}}), std::vector<int64_t>{16, 16}, 4, true);
  StateCache states(*backend, {}, 0);
  Scheduler scheduler(pool, windows, states, 4, 64, true);
  scheduler.add(make_request(1, Ids(20, 1)));
  advance_all(scheduler, scheduler.schedule());
  Request& r = *scheduler.find_running(1);
  r.tokens.push_back(1);
  scheduler.schedule();
  scheduler.check_integrity();
  CHECK_EQ(r.windows[0].num_freed, 3u);
  r.num_computed = 16;  // its row sees token 11
  CHECK_THROWS(scheduler.check_integrity(), ErrorCode::kInternal, "window_pages",
               {"request 1: 3 pages of group 1 were given back"});
}

}  // namespace

int main() {
  test_logit_rows();
  test_rollback_leaves_no_content();
  test_content_moves_to_a_held_page();
  test_prefixes_of_states();
  test_rollback_into_a_shared_page();
  test_windows();
  test_integrity_finds_a_lost_window();
  test_random_lives();
  return check::result("test_scheduler");
}
