// EngineCore's use of a step's logits: log-probabilities of prompts, and the next tokens.
#include <algorithm>

#include "base/clock.h"
#include "base/error.h"
#include "engine/engine_core.h"

namespace lynx_rt {

float* EngineCore::host_logits(int64_t row) {
  float* logits = logits_.get() + row * config_.vocab_size;
  if (backend_->host_memory()) return logits;
  host_logits_.resize(size_t(config_.vocab_size));
  backend_->read(host_logits_.data(), logits, config_.vocab_size * int64_t(sizeof(float)));
  return host_logits_.data();
}

// Computes the logits of step.logit_rows, as many at a time as there is room for. Returns the tokens drawn for the sampled rows,
// in their order.
std::vector<EngineCore::Drawn> EngineCore::use_logits(const ScheduledStep& step) {
  for (const ScheduledRequest& s : step.requests)  // entry 0 stays empty: nothing predicts the first token
    if (Request& r = *s.request; r.wants_prompt_logits()) r.prompt_logprobs.resize(size_t(r.num_computed + 1));
  const std::span<const LogitRow> wanted = step.logit_rows;
  std::vector<Drawn> drawn;
  for (const LogitRow& w : wanted)
    if (w.is_sampled) drawn.push_back({step.requests[w.request].request, {}, {}});
  drawn_tokens_.resize(drawn.size());
  size_t num_drawn = 0;
  for (size_t begin = 0; begin < wanted.size(); begin += size_t(decoder_.max_logit_rows())) {
    const auto group = wanted.subspan(begin, std::min(wanted.size() - begin, size_t(decoder_.max_logit_rows())));
    std::vector<int32_t> rows;
    for (const LogitRow& w : group) rows.push_back(int32_t(batch_.first_row(w.request) + w.row));
    decoder_.logits(rows, logits_.get());
    std::vector<SampleRow> sampled;
    for (size_t i = 0; i < group.size(); ++i) {
      Request& r = *step.requests[group[i].request].request;
      const size_t known = size_t(r.num_computed + group[i].row + 1);
      if (group[i].is_sampled) {
        sampled.push_back({r, std::span(r.tokens).first(known)});
      } else {
        r.prompt_logprobs.push_back(sampler_.top_logprobs(host_logits(int64_t(i)), r.tokens[known], r.params.prompt_logprobs));
      }
    }
    sample(sampled, int64_t(group.size() - sampled.size()), std::span(drawn).subspan(num_drawn, sampled.size()),
           drawn_tokens_.data() + num_drawn);
    num_drawn += sampled.size();
  }
  return drawn;
}

// Writes the row's token mask to `words`; returns false where it has none. Sets `error` where making the mask throws.
bool EngineCore::fill_token_mask(const SampleRow& row, std::span<int32_t> words, std::string& error) const {
  const Request& r = row.request;
  if (!r.token_mask || !r.params.forced_token_ids.empty()) return false;
  std::fill(words.begin(), words.end(), 0);
  try {
    return r.token_mask(row.tokens, words);
  } catch (const std::exception& e) {
    error = str_cat("request ", r.id, ": token mask: ", e.what());
    return false;
  }
}

// Draws a token for each row; the rows' logits are the rows of logits_ from first_logits on. A row that needs nothing but the
// draw is drawn by the backend, which writes the token to `tokens` at the end of the step. A row whose constraints or logits
// leave nothing to draw gets an error of its own; the others go on.
void EngineCore::sample(std::span<SampleRow> rows, int64_t first_logits, std::span<Drawn> drawn, int32_t* tokens) {
  const double start = now();
  const size_t words = size_t(token_mask_words(config_.vocab_size));
  size_t num_masks = 0;
  if (std::any_of(rows.begin(), rows.end(), [](const SampleRow& row) { return row.request.token_mask != nullptr; }))
    token_masks_.resize(std::max(token_masks_.size(), rows.size() * words));
  draws_.clear();
  for (size_t i = 0; i < rows.size(); ++i) {
    draws_.push_back(Sampler::draw_params(rows[i]));
    if (!rows[i].request.token_mask) continue;
    const auto mask = std::span(token_masks_).subspan(num_masks * words, words);
    if (!fill_token_mask(rows[i], mask, drawn[i].error)) continue;
    rows[i].mask = mask.data();
    drawn[i].has_mask = true;
    draws_.back().mask_row = int32_t(num_masks++);
  }
  backend_->sample(logits_.get() + first_logits * config_.vocab_size, draws_, std::span(token_masks_).first(num_masks * words),
                   config_.vocab_size, tokens);
  for (size_t i = 0; i < rows.size(); ++i) {
    drawn[i].by_backend = Sampler::draws_only(rows[i]);
    if (drawn[i].by_backend || !drawn[i].error.empty()) continue;
    try {
      drawn[i].result = sampler_.sample(rows[i], config_.eos_token_ids, host_logits(first_logits + int64_t(i)));
    } catch (const Error& e) {
      drawn[i].error = e.what();
    }
  }
  counters_.sampling_seconds += now() - start;
}

// Reads the tokens that the backend has drawn; called after the step.
void EngineCore::take_drawn_tokens(std::span<Drawn> drawn) const {
  for (size_t i = 0; i < drawn.size(); ++i) {
    if (!drawn[i].by_backend || !drawn[i].error.empty()) continue;
    drawn[i].result.token = drawn_tokens_[i];
    if (drawn_tokens_[i] < 0) drawn[i].error = Sampler::describe_error(*drawn[i].request, drawn_tokens_[i], drawn[i].has_mask);
  }
}

}  // namespace lynx_rt
