// Decides which rows run in a step. Continuous batching: decode rows first, then prefill chunks, within a token budget. Without
// mixed chunks, prefill has steps of its own, which go first. Requests are served in the order of (priority, arrival); which waiting one
// takes a free place, Admission says. Where pages run out, the last running request in that order is preempted and recomputed later.
//
// Layers that have a state beside pages find a prefix where both its pages and a snapshot of the state at its end are there: at the last
// page boundary of a prompt, and where a request has left a prefix that it shares with others. Tokens behind it are computed again.
//
// Rows of a prompt end before an image that the vision tower has not been through yet, and go on in a later step. Meanwhile the request is
// passed over. Requests hold the outputs of images until their rows are computed.
//
// Layers with a window have tables of their own, whose pages are given back behind the window when the next step is scheduled. They find a
// prefix whose last window is in the cache.
#pragma once
#include <cstdint>
#include <deque>
#include <limits>
#include <memory>
#include <vector>

#include "engine/admission.h"
#include "engine/block_pool.h"
#include "engine/request.h"
#include "engine/state_cache.h"
#include "engine/state_snapshots.h"
#include "engine/window_pages.h"
#include "routing/policy.h"

namespace lynx_rt {

struct ScheduledRequest {
  Request* request;
  int64_t num_tokens;  // rows of this step: tokens [num_computed, num_computed + num_tokens)
};

// A row whose logits are needed.
struct LogitRow {
  size_t request;   // index among the step's requests
  int64_t row;      // index among the request's rows
  bool is_sampled;  // a token is drawn from the logits; else they give the log-probability of the prompt token after the row
};

struct ScheduledStep {
  std::vector<ScheduledRequest> requests;  // decode rows first
  std::vector<LogitRow> logit_rows;        // sampled rows last; each group in the order of the requests and their rows
  int64_t num_rows = 0, num_decode_rows = 0;
  Phase phase = Phase::kPrefill;
};

// Thread-safety: none; the engine's lock covers it.
class Scheduler {
 public:
  // pool: pages of the layers that keep all of a sequence. images: null = no request has any.
  Scheduler(BlockPool& pool, WindowPages& windows, StateCache& states, int64_t max_num_seqs, int64_t max_num_batched_tokens,
            bool enable_mixed_chunk, const AdmissionRule& admission = {}, ImageOutputs* images = nullptr);

  void add(std::unique_ptr<Request> request);
  // Returns the next step and the rows whose logits it needs; empty where no request waits or runs. Takes pages for its rows. now: on
  // the clock of Request::arrival_time.
  ScheduledStep schedule(double now = 0);
  // Call after the step has run: counts a request's rows as computed and offers full pages to the prefix cache. `reproducible`:
  // the rows were computed under the model's own routing. At the request's boundaries the state is offered too.
  void advance(Request& request, int64_t num_tokens, bool reproducible);
  // Takes back the last `num_tokens` computed tokens of a running request, between steps. Frees the pages that hold nothing else,
  // and takes a page that is kept in part out of the prefix cache. A shared page must not be written to: where it would be kept
  // in part, it is released, and its first tokens are computed again. A state goes back to a snapshot before those tokens,
  // or to the beginning, and is computed again from there. The caller changes request.tokens.
  void rollback(Request& request, int64_t num_tokens);
  // Forgets the states of a step's requests, of which only some layers may have taken its tokens; the tokens before are computed again.
  // Does nothing where layers have no state: pages are written again by the next try.
  void forget_step(const ScheduledStep& step);
  // Copies a running request's state to its snapshot, replacing the last one. Does nothing where layers have no state. Returns
  // false where no slot is free.
  bool take_snapshot(Request& request);
  Request* find_running(uint64_t id) const;  // null where the request waits or is unknown
  // Removes a running or waiting request and frees its pages; returns null where it is unknown.
  std::unique_ptr<Request> remove(uint64_t id);
  // Returns the running and waiting requests whose deadline has come. The caller removes them.
  std::vector<Request*> expired(double now);

  int64_t num_running() const { return int64_t(running_.size()); }
  int64_t num_waiting() const { return int64_t(waiting_.size()); }
  int64_t num_waiting_tokens() const { return num_waiting_tokens_; }  // prompt tokens of the waiting requests
  // Returns the number of requests that must wait for another one to end; negative while there are fewer than max_num_seqs
  // requests.
  int64_t num_queued() const { return num_waiting() + num_running() - max_num_seqs_; }
  int64_t num_preemptions() const { return num_preemptions_; }
  std::vector<int32_t> held_blocks() const;
  std::vector<int32_t> held_states() const;  // by requests and snapshots
  int64_t num_held_images() const;           // outputs that requests hold
  // Throws kInternal, saying what, where pages, states or snapshots are inconsistent.
  void check_integrity() const;

 private:
  bool reserve(Request& request, int64_t num_tokens);  // pages for its first num_computed + num_tokens tokens
  // Gives the request the pages of tokens that need not be computed; returns the number of those tokens. Sets the boundaries.
  int64_t match_prefix(Request& request);
  bool is_shared(const Request& request, int64_t page) const;  // with other requests
  bool reserve_state(Request& request);
  int64_t rollback_state(Request& request, int64_t kept);
  void forget(Request& request);  // frees its pages and states
  using Waiting = Admission::Queue;
  void wait(std::unique_ptr<Request> request);
  std::unique_ptr<Request> take_waiting(Waiting::iterator at);
  void preempt_last();
  void schedule_decode(ScheduledStep& step);
  // Adds prefill chunks of running requests; then, unless the scheduler has made more than `preemptions` preemptions by then, of
  // waiting ones.
  void schedule_prefill(ScheduledStep& step, int64_t preemptions, double now);
  bool admit(ScheduledStep& step, size_t place);  // of the queue
  // Returns the rows of a request within the budget, which end before the first image whose output is not there; holds the others.
  int64_t rows_to_compute(const ScheduledStep& step, Request& request);
  void take(ScheduledStep& step, Request& request, int64_t num_tokens);
  void choose_rows(ScheduledStep& step);
  int64_t budget(const ScheduledStep& step) const { return max_num_batched_tokens_ - step.num_rows; }

  BlockPool& pool_;
  WindowPages& windows_;
  StateCache& states_;
  StateSnapshots snapshots_;
  int64_t max_num_seqs_, max_num_batched_tokens_;
  bool mixed_;
  Admission admission_;
  ImageOutputs* images_;
  std::vector<std::unique_ptr<Request>> running_;  // both in the order of (priority, arrival)
  Waiting waiting_;
  double earliest_deadline_ = std::numeric_limits<double>::infinity();  // of all requests; may be that of one that has ended
  int64_t num_waiting_tokens_ = 0;
  int64_t num_preemptions_ = 0;
};

}  // namespace lynx_rt
