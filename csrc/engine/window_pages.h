// KV pages of layers with a window: they are given back once no row sees their keys any more. No tensor code.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "engine/block_pool.h"
#include "engine/request.h"
#include "model/sequence_memory.h"

namespace lynx_rt {

// Has a BlockPool for each page group behind the first, whose own pool is the scheduler's. A page table (Request::windows) has as many
// entries as Request::blocks; the leading ones become kFreedBlock. A page that was given back stays in its pool's prefix cache until it is
// reused. There it is identified by the content of the first group's page of the same tokens.
// Thread-safety: none; the engine's lock covers it.
class WindowPages {
 public:
  // num_blocks: pages of each group, the first group's among them.
  WindowPages(const PageGroups& groups, std::span<const int64_t> num_blocks, int64_t block_size, bool enable_prefix_caching);

  int64_t num_groups() const { return int64_t(pools_.size()); }  // without the first
  const BlockPool& pool(int64_t group) const { return pools_[size_t(group)]; }

  // Adds `count` pages to each of a request's tables. Returns false, and takes none, where a group has fewer.
  bool allocate(Request& request, int64_t count);
  // Gives back the pages whose keys no row from the request's token num_computed on sees. Those of generated tokens are reused first, so
  // that long answers do not empty the prefix cache: others may begin with a prompt, or with all of an answer, hardly with a part of it.
  void release_behind(Request& request);
  void release(Request& request);  // all pages
  // Offers the request's page to the prefix cache, as one of Request::contents.
  void register_block(const Request& request, size_t page);
  bool is_shared(const Request& request, size_t page) const;  // with other requests, in some group

  // Returns the most leading tokens, at most num_tokens, behind which the request can go on: it has the pages that rows from there on
  // see, or the prefix cache does. They are num_tokens, or whole pages.
  int64_t longest_prefix(const Request& request, int64_t num_tokens) const;
  // Gives the request's tables the pages of its first num_tokens tokens, for which longest_prefix() holds, and no page after them. A page
  // that it keeps in part leaves the prefix cache.
  void restore(Request& request, int64_t num_tokens);

  // Throws kInternal, saying what, where pages are inconsistent, or a page is not there that a row will see.
  void check_integrity(std::span<const Request* const> requests) const;

 private:
  int64_t first_page(size_t group, int64_t num_tokens) const { return groups_[group].first_key(num_tokens) / block_size_; }
  bool has_page(size_t group, const Request& request, int64_t page, int64_t num_tokens) const;

  int64_t block_size_;
  std::vector<PageGroup> groups_;
  std::vector<BlockPool> pools_;
};

}  // namespace lynx_rt
