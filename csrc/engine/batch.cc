#include "engine/batch.h"

#include <algorithm>
#include <string_view>
#include <unordered_map>

namespace lynx_rt {

void Batch::clear(int64_t max_blocks) {
  token_ids_.clear();
  positions_.clear();
  rope_rows_.clear();
  image_rows_.runs.clear();
  image_rows_.positions.clear();
  has_images_ = false;
  block_tables_.clear();
  state_slots_.clear();
  slots_.clear();
  exact_.clear();
  query_start_.assign(1, 0);
  view_ = BatchView{};
  view_.max_blocks = max_blocks;
}

void Batch::add_sequence(std::span<const int32_t> tokens, int64_t position, std::span<const int32_t> blocks, int64_t block_size,
                         bool exact, int32_t state_slot, std::span<const RequestImage> images) {
  for (size_t i = 0; i < tokens.size(); ++i) {
    int64_t p = position + int64_t(i);
    token_ids_.push_back(tokens[i]);
    positions_.push_back(int32_t(p));
    exact_.push_back(exact);
  }
  query_start_.push_back(int32_t(token_ids_.size()));
  state_slots_.push_back(state_slot);
  add_pages(blocks, position, int64_t(tokens.size()), block_size);
  add_rope_rows(images, position, int64_t(tokens.size()));
}

void Batch::add_rope_rows(std::span<const RequestImage> images, int64_t position, int64_t count) {
  has_images_ = has_images_ || !images.empty();
  size_t next = 0;    // image that ends behind the token
  int64_t shift = 0;  // of rotary positions, by the images before
  for (int64_t p = position; p < position + count; ++p) {
    for (; next < images.size() && images[next].end() <= p; ++next) shift = images[next].next_rope_position - images[next].end();
    if (next == images.size() || p < images[next].position) {
      rope_rows_.push_back(int32_t(p + shift));
      continue;
    }
    const RequestImage& image = images[next];
    const int64_t token = p - image.position;
    if (p == position || token == 0)
      image_rows_.runs.push_back({int64_t(rope_rows_.size()), 0, image.output + token * image_columns_});
    ++image_rows_.runs.back().num_rows;
    rope_rows_.push_back(int32_t(first_image_rope_row_ + int64_t(image_rows_.positions.size())));
    const int32_t first = image.first_rope_position;
    image_rows_.positions.push_back({first, first + int32_t(token / image.columns), first + int32_t(token % image.columns)});
  }
}

void Batch::add_pages(std::span<const int32_t> blocks, int64_t position, int64_t count, int64_t block_size) {
  for (int64_t p = position; p < position + count; ++p)
    slots_.push_back(int64_t(blocks[size_t(p / block_size)]) * block_size + p % block_size);
  const size_t end = block_tables_.size() + size_t(view_.max_blocks);
  block_tables_.insert(block_tables_.end(), blocks.begin(), blocks.end());
  block_tables_.resize(end, 0);
}

// Numbers the isolation groups of the step by their first request. Numbers live for one step, so none is ever used up.
void Batch::number_groups(const ScheduledStep& step) {
  const auto name = [](const ScheduledRequest& s) -> const std::string& { return s.request->params.isolation_group; };
  group_of_request_.assign(step.requests.size(), 0);
  rows_of_group_.assign(1, step.num_rows);
  view_.isolated = std::any_of(step.requests.begin(), step.requests.end(), [&](const auto& s) { return !name(s).empty(); });
  if (std::all_of(step.requests.begin(), step.requests.end(), [&](const auto& s) { return name(s) == name(step.requests[0]); }))
    return;
  std::unordered_map<std::string_view, int32_t> numbers;
  groups_.clear();
  rows_of_group_.clear();
  for (size_t i = 0; i < step.requests.size(); ++i) {
    const ScheduledRequest& s = step.requests[i];
    const int32_t number = group_of_request_[i] = numbers.try_emplace(name(s), int32_t(numbers.size())).first->second;
    rows_of_group_.resize(numbers.size());
    rows_of_group_[size_t(number)] += s.num_tokens;
    groups_.insert(groups_.end(), size_t(s.num_tokens), number);
  }
  view_.groups = groups_.data();
}

void Batch::finish(Phase phase) {
  view_.num_rows = int64_t(token_ids_.size());
  view_.num_seqs = int64_t(query_start_.size()) - 1;
  view_.token_ids = token_ids_.data();
  view_.positions = positions_.data();
  view_.rope_rows = has_images_ ? rope_rows_.data() : nullptr;
  view_.slots = slots_.data();
  view_.query_start = query_start_.data();
  view_.block_tables = block_tables_.data();
  view_.state_slots = state_slots_.data();
  view_.exact = exact_.data();
  view_.phase = phase;
}

const BatchView& Batch::build(const ScheduledStep& step, int64_t block_size) {
  size_t max_blocks = 0;
  for (const ScheduledRequest& s : step.requests) max_blocks = std::max(max_blocks, s.request->blocks.size());
  clear(int64_t(max_blocks));
  for (const ScheduledRequest& s : step.requests) {
    const Request& r = *s.request;
    add_sequence(std::span(r.tokens).subspan(size_t(r.num_computed), size_t(s.num_tokens)), r.num_computed, r.blocks, block_size,
                 r.params.exact, r.state, r.images);
  }
  view_.num_page_groups = 1 + int64_t(step.requests.empty() ? 0 : step.requests[0].request->windows.size());
  for (size_t g = 0; g + 1 < size_t(view_.num_page_groups); ++g)
    for (const ScheduledRequest& s : step.requests)
      add_pages(s.request->windows[g].blocks, s.request->num_computed, s.num_tokens, block_size);
  finish(step.phase);
  number_groups(step);
  return view_;
}

const BatchView& Batch::build_single(std::span<const int32_t> tokens, int64_t position, std::span<const int32_t> blocks,
                                     int64_t block_size, std::span<const RequestImage> images) {
  clear(int64_t(blocks.size()));
  add_sequence(tokens, position, blocks, block_size, true, 0, images);
  finish(Phase::kPrefill);
  return view_;
}

}  // namespace lynx_rt
