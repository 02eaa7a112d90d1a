// Decides which rows run in a step. Continuous batching: decode rows first, then prefill chunks, within a token budget
// (or, without mixed chunks, prefill in steps of its own, first);
// where pages run out, the latest request is preempted and recomputed later.
#pragma once
#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "engine/block_pool.h"
#include "engine/request.h"
#include "engine/state_cache.h"
#include "routing/policy.h"

namespace lynx_rt {

struct ScheduledRequest {
  Request* request;
  int64_t num_tokens;  // rows of this step: tokens [num_computed, num_computed + num_tokens)
};

// A row whose logits are wanted.
struct LogitRow {
  size_t request;   // among those of the step
  int64_t row;      // among those of the request
  bool is_sampled;  // a token is drawn from the logits; else they tell the log-probability of the prompt token after the row
};

struct ScheduledStep {
  std::vector<ScheduledRequest> requests;  // decode rows first
  std::vector<LogitRow> logit_rows;        // sampled rows last; each group in the order of the requests and their rows
  int64_t num_rows = 0;
  Phase phase = Phase::kPrefill;
};

// Thread-safety: none; the engine's lock covers it.
class Scheduler {
 public:
  Scheduler(BlockPool& pool, StateCache& states, int64_t max_num_seqs, int64_t max_num_batched_tokens, bool enable_mixed_chunk);

  void add(std::unique_ptr<Request> request);
  // The next step and the rows whose logits it needs; empty where nothing waits or runs. Takes pages for its rows.
  ScheduledStep schedule();
  // After the step has run: counts its rows as computed and offers full pages to the prefix cache. `reproducible` = the rows were
  // computed under the model's own routing (per request).
  void advance(Request& request, int64_t num_tokens, bool reproducible);
  // Takes back the last `num_tokens` computed tokens of a running request, between steps: frees the pages that hold nothing
  // else, and takes one that is kept in part out of the prefix cache. A page that others share is not written to again: where it
  // would be kept in part, it is given up, and its first tokens are computed again. A state goes back to the last snapshot before
  // those tokens, or to the beginning, and is computed again from there. request.tokens is left to the caller.
  void rollback(Request& request, int64_t num_tokens);
  // Keeps a running request's state as it is now, in place of the last snapshot. Nothing where layers have none. False where no
  // slot is free.
  bool take_snapshot(Request& request);
  Request* find_running(uint64_t id) const;  // null where it waits or is unknown
  // Removes a request, running or waiting, and frees its pages; null where it is unknown.
  std::unique_ptr<Request> remove(uint64_t id);

  int64_t num_running() const { return int64_t(running_.size()); }
  int64_t num_waiting() const { return int64_t(waiting_.size()); }
  // Waiting requests that have to wait for another one to end; negative while fewer than max_num_seqs are there.
  int64_t num_queued() const { return num_waiting() + num_running() - max_num_seqs_; }
  int64_t num_preemptions() const { return num_preemptions_; }
  std::vector<int32_t> held_blocks() const;
  std::vector<int32_t> held_states() const;

 private:
  bool reserve(Request& request, int64_t num_tokens);  // pages for its first num_computed + num_tokens tokens
  bool reserve_state(Request& request);
  int64_t rollback_state(Request& request, int64_t kept);
  void forget(Request& request);  // its pages and states
  void preempt_last();
  void schedule_decode(ScheduledStep& step);
  // Running requests, then waiting ones, unless the scheduler has made more than `preemptions` by then.
  void schedule_prefill(ScheduledStep& step, int64_t preemptions);
  bool admit(ScheduledStep& step);
  void take(ScheduledStep& step, Request& request, int64_t num_tokens);
  void choose_rows(ScheduledStep& step);
  int64_t budget(const ScheduledStep& step) const { return max_num_batched_tokens_ - step.num_rows; }

  BlockPool& pool_;
  StateCache& states_;
  int64_t max_num_seqs_, max_num_batched_tokens_;
  bool mixed_;
  std::vector<std::unique_ptr<Request>> running_;  // in order of admission
  std::deque<std::unique_ptr<Request>> waiting_;
  int64_t num_preemptions_ = 0;
};

}  // namespace lynx_rt
