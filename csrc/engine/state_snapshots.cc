#include "engine/state_snapshots.h"

#include <algorithm>

#include "base/error.h"

namespace lynx_rt {

int64_t StateSnapshots::longest_prefix(const std::vector<ContentId>& contents, int64_t max_pages) const {
  int64_t pages = std::min(max_pages, int64_t(contents.size()));
  while (pages > 0 && !contains(contents[size_t(pages - 1)])) --pages;
  return pages;
}

bool StateSnapshots::free_slot() {
  if (states_.num_free() == 0 && !by_use_.empty()) drop(by_use_.front().content);
  return states_.num_free() > 0;
}

int32_t StateSnapshots::allocate(ContentId content) {
  if (content == kNoContent) return free_slot() ? states_.allocate() : -1;
  const Snapshots::iterator snapshot = by_content_.at(content);
  use(snapshot);
  if (states_.num_free() == 0 && size() == 1) {
    const int32_t slot = snapshot->slot;
    by_content_.clear();
    by_use_.clear();
    return slot;
  }
  free_slot();
  return states_.allocate(snapshot->slot);
}

void StateSnapshots::restore(ContentId content, int32_t slot) {
  const Snapshots::iterator snapshot = by_content_.at(content);
  use(snapshot);
  states_.copy(snapshot->slot, slot);
}

void StateSnapshots::keep(ContentId content, int32_t slot) {
  if (const auto found = by_content_.find(content); found != by_content_.end()) {
    use(found->second);
  } else if (free_slot()) {
    by_content_[content] = by_use_.insert(by_use_.end(), {content, states_.allocate(slot)});
  }
}

void StateSnapshots::drop(ContentId content) {
  const auto found = by_content_.find(content);
  if (found == by_content_.end()) return;
  states_.release(found->second->slot);
  by_use_.erase(found->second);
  by_content_.erase(found);
}

std::vector<int32_t> StateSnapshots::held_states() const {
  std::vector<int32_t> held;
  for (const Snapshot& snapshot : by_use_) held.push_back(snapshot.slot);
  return held;
}

void StateSnapshots::check_integrity(const BlockPool& pool) const {
  if (by_use_.size() != by_content_.size())
    fail(ErrorCode::kInternal, "state_snapshots", by_use_.size(), " snapshots are listed, but ", by_content_.size(),
         " are found");
  const std::vector<ContentId> cached = pool.cached_contents();
  for (const Snapshot& snapshot : by_use_) {
    if (!contains(snapshot.content) || by_content_.at(snapshot.content)->slot != snapshot.slot)
      fail(ErrorCode::kInternal, "state_snapshots", "the snapshot of content ", snapshot.content, " is not found");
    if (std::find(cached.begin(), cached.end(), snapshot.content) == cached.end())
      fail(ErrorCode::kInternal, "state_snapshots", "the snapshot of content ", snapshot.content,
           " has no page in the prefix cache");
  }
}

}  // namespace lynx_rt
