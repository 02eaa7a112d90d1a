// The prefix cache of states: copies of a state at page boundaries, for requests that begin with the same tokens. No tensor code.
#pragma once
#include <cstdint>
#include <list>
#include <unordered_map>
#include <vector>

#include "engine/block_pool.h"
#include "engine/state_cache.h"

namespace lynx_rt {

// A snapshot is identified by the content of the page that ends at its boundary, see BlockPool. Snapshots take slots of the StateCache
// that no request holds; where a slot is needed and none is free, the least recently used one gives up its own.
// Thread-safety: none; the engine's lock covers it.
class StateSnapshots {
 public:
  explicit StateSnapshots(StateCache& states) : states_(states) {}

  int64_t size() const { return int64_t(by_use_.size()); }
  bool contains(ContentId content) const { return by_content_.count(content) > 0; }
  // Returns the number of leading pages whose state there is: the longest prefix that ends with a snapshot, of the first `max_pages`.
  int64_t longest_prefix(const std::vector<ContentId>& contents, int64_t max_pages) const;
  // Returns a slot for a request, with a copy of the snapshot of `content`, which there must be, or with zeros for kNoContent; -1 where
  // requests hold all slots. The snapshot of `content` is the last to give up its slot, and then to this request.
  int32_t allocate(ContentId content = kNoContent);
  // Copies the snapshot, which there must be, to a slot that a request holds.
  void restore(ContentId content, int32_t slot);
  // Keeps a copy of a slot as the snapshot of `content`, if there is none yet; does nothing where requests hold all slots.
  void keep(ContentId content, int32_t slot);
  void drop(ContentId content);  // where there is one

  std::vector<int32_t> held_states() const;
  // Throws kInternal, saying what, where something is inconsistent, or a snapshot's page is not in the prefix cache any more.
  void check_integrity(const BlockPool& pool) const;

 private:
  struct Snapshot {
    ContentId content;
    int32_t slot;
  };
  using Snapshots = std::list<Snapshot>;

  void use(Snapshots::iterator snapshot) { by_use_.splice(by_use_.end(), by_use_, snapshot); }
  bool free_slot();  // returns false where requests hold all slots

  StateCache& states_;
  Snapshots by_use_;  // least recently used first
  std::unordered_map<ContentId, Snapshots::iterator> by_content_;
};

}  // namespace lynx_rt
