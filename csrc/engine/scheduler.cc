#include "engine/scheduler.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include "base/error.h"
#include "base/types.h"

namespace lynx_rt {

namespace {

bool comes_before(const std::unique_ptr<Request>& a, const std::unique_ptr<Request>& b) {
  return std::tie(a->params.priority, a->id) < std::tie(b->params.priority, b->id);
}

// Puts a request at its place in a list, in which it stands after those of its priority that arrived before it.
template <class List>
void insert_ordered(List& list, std::unique_ptr<Request> r) {
  const auto at = std::upper_bound(list.begin(), list.end(), r, comes_before);
  list.insert(at, std::move(r));
}

}  // namespace

Scheduler::Scheduler(BlockPool& pool, WindowPages& windows, StateCache& states, int64_t max_num_seqs,
                     int64_t max_num_batched_tokens, bool enable_mixed_chunk, const AdmissionRule& admission,
                     ImageOutputs* images)
    : pool_(pool),
      windows_(windows),
      states_(states),
      snapshots_(states),
      max_num_seqs_(max_num_seqs),
      max_num_batched_tokens_(max_num_batched_tokens),
      mixed_(enable_mixed_chunk),
      admission_(admission),
      images_(images) {
  pool_.set_on_drop([this](ContentId content) { snapshots_.drop(content); });
}

void Scheduler::add(std::unique_ptr<Request> r) {
  earliest_deadline_ = std::min(earliest_deadline_, r->deadline);
  admission_.add(*r);
  wait(std::move(r));
}

void Scheduler::wait(std::unique_ptr<Request> r) {
  num_waiting_tokens_ += r->prompt_len;
  insert_ordered(waiting_, std::move(r));
}

std::unique_ptr<Request> Scheduler::take_waiting(Waiting::iterator at) {
  std::unique_ptr<Request> r = std::move(*at);
  waiting_.erase(at);
  num_waiting_tokens_ -= r->prompt_len;
  return r;
}

std::vector<Request*> Scheduler::expired(double now) {
  std::vector<Request*> out;
  if (now < earliest_deadline_) return out;
  earliest_deadline_ = std::numeric_limits<double>::infinity();
  const auto look = [&](const std::unique_ptr<Request>& r) {
    if (r->deadline <= now)
      out.push_back(r.get());
    else
      earliest_deadline_ = std::min(earliest_deadline_, r->deadline);
  };
  std::for_each(running_.begin(), running_.end(), look);
  std::for_each(waiting_.begin(), waiting_.end(), look);
  return out;
}

bool Scheduler::reserve(Request& r, int64_t num_tokens) {
  int64_t needed = ceil_div(r.num_computed + num_tokens, pool_.block_size()) - int64_t(r.blocks.size());
  return needed <= 0 || (pool_.num_free() >= needed && windows_.allocate(r, needed) && pool_.allocate(needed, r.blocks));
}

// Takes a slot, whose state is that after num_computed tokens; returns false where none is free.
bool Scheduler::reserve_state(Request& r) {
  if (!states_.empty()) r.state = snapshots_.allocate(r.contents.empty() ? kNoContent : r.contents.back());
  return states_.empty() || r.state >= 0;
}

void Scheduler::forget(Request& r) {
  for (RequestImage& image : r.images) images_->release(image);
  states_.release(std::exchange(r.state, -1));
  states_.release(std::exchange(r.snapshot, {}).slot);
  windows_.release(r);
  pool_.release(r.blocks);
  r.blocks.clear();
  r.contents.clear();
  r.num_computed = r.num_reproducible = r.num_routed_returned = 0;
}

void Scheduler::preempt_last() {
  std::unique_ptr<Request> r = std::move(running_.back());
  running_.pop_back();
  forget(*r);
  ++r->num_preemptions;
  ++num_preemptions_;
  wait(std::move(r));
}

int64_t Scheduler::rows_to_compute(const ScheduledStep& step, Request& r) {
  int64_t n = std::min(budget(step), r.num_pending());
  for (const int64_t boundary : {r.boundaries.junction, r.boundaries.last})
    if (boundary > r.num_computed) {
      n = std::min(n, boundary - r.num_computed);
      break;
    }
  for (RequestImage& image : r.images) {
    if (image.end() <= r.num_computed) continue;
    if (image.position >= r.num_computed + n) break;
    if (!images_->acquire(image)) return std::max<int64_t>(0, image.position - r.num_computed);
  }
  return n;
}

void Scheduler::take(ScheduledStep& step, Request& r, int64_t num_tokens) {
  step.requests.push_back({&r, num_tokens});
  step.num_rows += num_tokens;
}

// A request that finds no page preempts the last one, which has not been scheduled in this step yet. The last one preempts itself.
void Scheduler::schedule_decode(ScheduledStep& step) {
  for (size_t i = 0; i < running_.size() && budget(step) > 0; ++i) {
    Request* r = running_[i].get();
    if (!r->is_decoding()) continue;
    const int64_t n = std::min(budget(step), r->num_pending());
    bool ok = reserve(*r, n);
    while (!ok && running_.size() > i + 1) {
      preempt_last();
      ok = reserve(*r, n);
    }
    if (ok) {
      take(step, *r, n);
    } else {
      preempt_last();  // preempts itself; the requests before it hold the pages and go on
    }
  }
}

// Chunks of running requests wait for pages rather than preempt, unless nothing else can run. A request that was preempted in
// this step is not admitted again before the next step.
void Scheduler::schedule_prefill(ScheduledStep& step, int64_t preemptions, double now) {
  for (size_t i = 0; i < running_.size() && budget(step) > 0; ++i) {
    Request* r = running_[i].get();
    if (r->is_decoding()) continue;
    const int64_t n = rows_to_compute(step, *r);
    if (n == 0) continue;  // it waits for an image
    bool ok = reserve(*r, n);
    bool alone =
        step.requests.empty() && std::none_of(running_.begin(), running_.end(), [](const auto& o) { return o->is_decoding(); });
    while (!ok && alone && running_.size() > i + 1) {
      preempt_last();
      ok = reserve(*r, n);
    }
    if (!ok) return;  // no request overtakes: short requests would take every page that becomes free
    take(step, *r, n);
  }
  while (num_preemptions_ == preemptions && budget(step) > 0 && !waiting_.empty() && num_running() < max_num_seqs_)
    if (!admit(step, admission_.choose(waiting_, running_, now))) break;
}

void Scheduler::choose_rows(ScheduledStep& step) {
  // Adds the rows of request i's tokens [begin, end), as far as the step computes them.
  const auto add = [&](size_t i, int64_t begin, int64_t end, bool is_sampled) {
    const ScheduledRequest& s = step.requests[i];
    const int64_t first = s.request->num_computed;
    begin = std::max(begin, first);
    end = std::min(end, first + s.num_tokens);
    for (int64_t token = begin; token < end; ++token) step.logit_rows.push_back({i, token - first, is_sampled});
  };
  for (size_t i = 0; i < step.requests.size(); ++i)
    if (const Request& r = *step.requests[i].request; r.wants_prompt_logits()) add(i, 0, r.prompt_len - 1, false);
  for (size_t i = 0; i < step.requests.size(); ++i) {
    const Request& r = *step.requests[i].request;
    add(i, r.first_sampled(), int64_t(r.tokens.size()), true);
  }
}

ScheduledStep Scheduler::schedule(double now) {
  for (const auto& r : running_) windows_.release_behind(*r);
  if (images_) images_->begin_step(std::any_of(running_.begin(), running_.end(), [](const auto& r) { return r->is_decoding(); }));
  ScheduledStep step;
  int64_t preemptions = num_preemptions_;
  if (!mixed_) schedule_prefill(step, preemptions, now);
  if (step.requests.empty()) {
    schedule_decode(step);
    size_t num_decode = step.requests.size();
    step.num_decode_rows = step.num_rows;
    // If every decoding request was preempted, the requests that hold the pages continue their prefill.
    if (step.requests.empty() || (mixed_ && num_preemptions_ == preemptions)) schedule_prefill(step, preemptions, now);
    // Requests may wait for each other, one for pages, the other for room for an image.
    while (images_ && step.requests.empty() && running_.size() > 1) {
      preempt_last();
      schedule_prefill(step, preemptions, now);
    }
    step.phase = num_decode == step.requests.size() ? Phase::kDecodeOnly : num_decode == 0 ? Phase::kPrefill : Phase::kMixed;
  }
  choose_rows(step);
  return step;
}

int64_t Scheduler::match_prefix(Request& r) {
  // The last known token and the drafts are always computed, for their logits. Prompt logprobs need the logits of every token.
  const int64_t size = pool_.block_size(), reusable = r.first_sampled() / size;
  BlockPool::PageWords words;
  if (!r.images.empty()) words = [&](int64_t first, int64_t count) { return image_words(r.images, first, count); };
  BlockPool::Match match = pool_.match_prefix(r.tokens, r.params.prompt_logprobs >= 0 ? 0 : reusable, r.params.cache_salt, words);
  r.blocks = std::move(match.blocks);
  r.contents = std::move(match.contents);
  int64_t pages = int64_t(r.blocks.size());
  const bool has_states = !states_.empty() && pool_.is_caching();
  if (has_states) r.boundaries = {pages * size, reusable * size};
  for (int64_t before = -1; pages != before;) {
    before = pages;
    pages = windows_.longest_prefix(r, pages * size) / size;
    if (has_states) pages = snapshots_.longest_prefix(r.contents, pages);
  }
  // Pages behind the prefix may be read by others while these tokens are computed again, so they are not written to.
  pool_.release(std::span(r.blocks).subspan(size_t(pages)));
  r.blocks.resize(size_t(pages));
  r.contents.resize(size_t(pages));
  windows_.restore(r, pages * size);
  return pages * size;
}

bool Scheduler::admit(ScheduledStep& step, size_t place) {
  Request& r = *waiting_[place];
  const int64_t matched = match_prefix(r);
  r.num_computed = r.num_reproducible = matched;
  const int64_t n = rows_to_compute(step, r);
  if (!reserve(r, n) || !reserve_state(r)) {
    forget(r);
    return false;
  }
  if (r.num_preemptions == 0) r.num_cached_tokens = matched;
  admission_.pass_over(waiting_, place);
  insert_ordered(running_, take_waiting(waiting_.begin() + std::ptrdiff_t(place)));
  if (n > 0) take(step, r, n);  // else it waits for an image
  return true;
}

void Scheduler::advance(Request& r, int64_t num_tokens, bool reproducible) {
  if (reproducible && r.num_reproducible == r.num_computed) r.num_reproducible += num_tokens;
  r.num_computed += num_tokens;
  for (RequestImage& image : r.images)
    if (image.end() <= r.num_computed) images_->release(image);
  const size_t size = size_t(pool_.block_size());
  for (size_t i = r.contents.size(); (i + 1) * size <= size_t(r.num_reproducible); ++i) {
    auto tokens = std::span<const int32_t>(r.tokens).subspan(i * size, size);
    r.contents.push_back(pool_.register_block(r.blocks[i], i ? r.contents[i - 1] : kNoContent, tokens, r.params.cache_salt,
                                              image_words(r.images, int64_t(i * size), int64_t(size))));
    windows_.register_block(r, i);
  }
  const bool is_boundary = r.num_computed == r.boundaries.junction || r.num_computed == r.boundaries.last;
  if (is_boundary && r.contents.size() * size == size_t(r.num_computed)) snapshots_.keep(r.contents.back(), r.state);
}

bool Scheduler::is_shared(const Request& r, int64_t page) const {
  return pool_.num_references(r.blocks[size_t(page)]) > 1 || windows_.is_shared(r, size_t(page));
}

// Takes the state back to `kept` computed tokens or fewer; returns their number.
int64_t Scheduler::rollback_state(Request& r, int64_t kept) {
  if (states_.empty()) return kept;
  // A page that others read is not written to, so a state in its middle is of no use.
  const int64_t size = pool_.block_size(), at = r.snapshot.num_computed;
  if (r.snapshot.slot >= 0 && at <= kept && (at % size == 0 || !is_shared(r, at / size))) {
    states_.copy(r.snapshot.slot, r.state);
    return at;
  }
  states_.release(std::exchange(r.snapshot, {}).slot);
  if (const int64_t pages = snapshots_.longest_prefix(r.contents, kept / size); pages > 0) {
    snapshots_.restore(r.contents[size_t(pages - 1)], r.state);
    return pages * size;
  }
  states_.clear(r.state);
  return 0;
}

void Scheduler::rollback(Request& r, int64_t num_tokens) {
  if (num_tokens < 0 || num_tokens > r.num_computed)
    fail(ErrorCode::kInternal, "rollback", "rollback: expected 0 to ", r.num_computed, " tokens of request ", r.id, ", got ",
         num_tokens);
  if (num_tokens == 0) return;
  const int64_t size = pool_.block_size();
  int64_t kept = r.num_computed - num_tokens;
  if (kept % size > 0 && is_shared(r, kept / size)) kept -= kept % size;
  kept = rollback_state(r, windows_.longest_prefix(r, kept));
  if (windows_.longest_prefix(r, kept) < kept) {  // the state went back to tokens whose window is gone
    states_.release(std::exchange(r.snapshot, {}).slot);
    states_.clear(r.state);
    kept = 0;
  }
  const size_t full = size_t(kept / size), num_blocks = size_t(ceil_div(kept, size));
  for (size_t i = r.contents.size(); i-- > full;) pool_.unregister_block(r.blocks[i]);
  pool_.release(std::span(r.blocks).subspan(num_blocks));
  r.blocks.resize(num_blocks);
  r.contents.resize(std::min(r.contents.size(), full));
  windows_.restore(r, kept);
  r.num_computed = kept;
  r.num_reproducible = std::min(r.num_reproducible, r.num_computed);
  r.num_routed_returned = std::min(r.num_routed_returned, r.num_computed);
}

void Scheduler::forget_step(const ScheduledStep& step) {
  if (states_.empty()) return;
  for (const ScheduledRequest& s : step.requests) {
    states_.clear(s.request->state);
    rollback(*s.request, s.request->num_computed);
  }
}

bool Scheduler::take_snapshot(Request& r) {
  if (states_.empty()) return true;
  if (r.snapshot.slot < 0) r.snapshot.slot = snapshots_.allocate();
  if (r.snapshot.slot < 0) return false;
  states_.copy(r.state, r.snapshot.slot);
  r.snapshot.num_computed = r.num_computed;
  return true;
}

Request* Scheduler::find_running(uint64_t id) const {
  const auto it = std::find_if(running_.begin(), running_.end(), [id](const auto& r) { return r->id == id; });
  return it == running_.end() ? nullptr : it->get();
}

std::unique_ptr<Request> Scheduler::remove(uint64_t id) {
  auto is_it = [id](const std::unique_ptr<Request>& r) { return r->id == id; };
  std::unique_ptr<Request> out;
  if (auto it = std::find_if(running_.begin(), running_.end(), is_it); it != running_.end()) {
    out = std::move(*it);
    running_.erase(it);
  } else if (auto w = std::find_if(waiting_.begin(), waiting_.end(), is_it); w != waiting_.end()) {
    out = take_waiting(w);
  }
  if (out) forget(*out);
  return out;
}

std::vector<int32_t> Scheduler::held_blocks() const {
  std::vector<int32_t> held;
  for (const auto& r : running_) held.insert(held.end(), r->blocks.begin(), r->blocks.end());
  for (const auto& r : waiting_) held.insert(held.end(), r->blocks.begin(), r->blocks.end());
  return held;
}

std::vector<int32_t> Scheduler::held_states() const {
  std::vector<int32_t> held = snapshots_.held_states();
  for (const auto& r : running_)
    for (const int32_t slot : {r->state, r->snapshot.slot})
      if (slot >= 0) held.push_back(slot);
  return held;
}

int64_t Scheduler::num_held_images() const {
  int64_t held = 0;
  const auto add = [&](const auto& requests) {
    for (const auto& r : requests)
      held += std::count_if(r->images.begin(), r->images.end(), [](const auto& i) { return i.output; });
  };
  add(running_);
  add(waiting_);
  return held;
}

void Scheduler::check_integrity() const {
  pool_.check_integrity(held_blocks());
  std::vector<const Request*> requests;
  for (const auto& r : running_) requests.push_back(r.get());
  for (const auto& r : waiting_) requests.push_back(r.get());
  windows_.check_integrity(requests);
  states_.check_integrity(held_states());
  snapshots_.check_integrity(pool_);
}

}  // namespace lynx_rt
