// A scheduler with requests, and what a model would write to their pages: shared by tests of the scheduler.
#pragma once
#include <algorithm>
#include <map>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "check.h"
#include "engine/scheduler.h"

namespace scheduler_world {

using namespace lynx_rt;
using Ids = std::vector<int32_t>;

inline std::unique_ptr<Backend> cpu() { return make_backend({"cpu", DType::kF32, 1, ""}); }

inline std::unique_ptr<Request> make_request(uint64_t id, Ids prompt, int prompt_logprobs = -1) {
  auto r = std::make_unique<Request>();
  r->id = id;
  r->params.prompt_logprobs = prompt_logprobs;
  r->prompt_len = int64_t(prompt.size());
  r->tokens = std::move(prompt);
  return r;
}

// Page groups of a model whose layers have these windows and chunks, beside layers that keep all.
inline PageGroups page_groups_of(const std::vector<PageGroup>& windows) {
  PageGroups out{{PageGroup{}}, {}};
  out.groups.insert(out.groups.end(), windows.begin(), windows.end());
  return out;
}
// Returns the pages that a step of `rows` rows may need of a group, where `requests` run.
inline int64_t most_pages(const PageGroup& group, int64_t block_size, int64_t requests, int64_t rows) {
  return requests * (ceil_div(group.span(INT64_MAX / 2), block_size) + 2) + ceil_div(rows, block_size);
}
inline WindowPages no_windows() { return WindowPages(page_groups_of({}), {}, 1, true); }

// Runs steps like a model, but with hashes: a place of a page holds a hash of all tokens up to its own, a state holds a hash of all
// tokens that went into it, and the next token is a function of the hash.
class World {
 public:
  // num_windows: how many sequences' windows have room in each of `windows`.
  World(int64_t num_blocks, int64_t block_size, int64_t num_states, bool mixed, uint32_t seed,
        const std::vector<PageGroup>& windows = {}, int64_t num_windows = 0)
      : random_(seed),
        backend_(cpu()),
        groups_(page_groups_of(windows)),
        num_blocks_(blocks_of(num_blocks, block_size, num_windows)),
        pool_(num_blocks, block_size, true),
        windows_(groups_, num_blocks_, block_size, true),
        states_(*backend_, num_states ? std::span<const int64_t>(kStateBytes) : std::span<const int64_t>(), num_states),
        scheduler_(pool_, windows_, states_, 6, kStepRows, mixed) {
    for (const int64_t blocks : num_blocks_) memory_.emplace_back(size_t(blocks * block_size));
  }

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
    for (int64_t g = 0; g < windows_.num_groups(); ++g) CHECK_EQ(windows_.pool(g).num_free(), windows_.pool(g).num_blocks());
    CHECK_EQ(states_.num_free() + int64_t(scheduler_.held_states().size()), states_.num_slots());
    CHECK_EQ(num_finished_, count);
  }

  int64_t num_rejected = 0, num_accepted = 0, num_rollbacks = 0, num_cached = 0, num_freed = 0;
  int64_t num_preemptions() const { return scheduler_.num_preemptions(); }

 private:
  static constexpr int64_t kStateBytes[] = {0, 8, 100}, kStepRows = 24;

  std::vector<int64_t> blocks_of(int64_t num_blocks, int64_t block_size, int64_t num_windows) const {
    std::vector<int64_t> out{num_blocks};
    for (size_t g = 1; g < groups_.groups.size(); ++g)
      out.push_back(std::min(num_blocks, most_pages(groups_.groups[g], block_size, num_windows, kStepRows)));
    return out;
  }

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
      for (size_t g = 1; g < memory_.size(); ++g) {
        const Request::PageTable& table = s.request->windows[g - 1];
        num_freed += int64_t(table.num_freed);
        CHECK(int64_t(table.blocks.size() - table.num_freed) <=
              most_pages(groups_.groups[g], pool_.block_size(), 1, s.num_tokens));
      }
    for (const ScheduledRequest& s : step.requests)
      for (int64_t i = 0; i < s.num_tokens; ++i) {
        const Request& r = *s.request;
        const int64_t p = r.num_computed + i;
        for (size_t g = 0; g < memory_.size(); ++g)
          memory_[g][place(r, g, p)] = hash_of(std::span(r.tokens).first(size_t(p + 1)));
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

  size_t place(const Request& r, size_t group, int64_t p) const {
    const Ids& table = group == 0 ? r.blocks : r.windows[group - 1].blocks;
    return size_t(int64_t(table[size_t(p / pool_.block_size())]) * pool_.block_size() + p % pool_.block_size());
  }

  // Checks that a request's memory has what the request alone would have written.
  void check_memory(const Request& r) {
    uint64_t hash = 0;
    for (int64_t p = 0; p < r.num_computed; ++p) {
      hash = extend(hash, r.tokens[size_t(p)]);
      for (size_t g = 0; g < memory_.size(); ++g)
        if (p >= groups_.groups[g].first_key(r.num_computed)) CHECK_EQ(memory_[g].at(place(r, g, p)), hash);
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
  PageGroups groups_;
  std::vector<int64_t> num_blocks_;  // of each group
  BlockPool pool_;
  WindowPages windows_;
  StateCache states_;
  Scheduler scheduler_;
  std::vector<std::vector<uint64_t>> memory_;  // of each group
  uint64_t next_id_ = 1;
  int64_t num_finished_ = 0;
};

}  // namespace scheduler_world
