// Fixed-size KV pages: reference counts, a free list in least-recently-used order, and the prefix cache. No tensor code.
//
// Prefix cache: a full page is identified by the content of its predecessor and its own tokens. Every registered content has a
// number of its own, so equality is exact and does not depend on hashes being free of collisions. A page without references keeps
// its content until the free list hands it out again.
#pragma once
#include <cstdint>
#include <functional>
#include <span>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace lynx_rt {

using ContentId = int64_t;
constexpr ContentId kNoContent = 0;  // the empty prefix

// Thread-safety: none; the engine's lock covers it.
class BlockPool {
 public:
  BlockPool(int64_t num_blocks, int64_t block_size, bool enable_prefix_caching);

  bool is_caching() const { return caching_; }
  // Sets what is called with every content that leaves the cache: no request finds it any more.
  void set_on_drop(std::function<void(ContentId)> on_drop) { on_drop_ = std::move(on_drop); }
  int64_t block_size() const { return block_size_; }
  int64_t num_blocks() const { return int64_t(blocks_.size()); }
  int64_t num_free() const { return num_free_; }
  int32_t num_references(int32_t block) const { return blocks_[size_t(block)].references; }

  // Takes `count` pages, with one reference each, and appends them to `out`. Returns false, and takes none, where fewer are free.
  bool allocate(int64_t count, std::vector<int32_t>& out);
  // Drops one reference of each page, the last page first, so that the ends of prefixes are reused before their beginnings. `reuse_first`:
  // pages without references are reused before all others, since nobody is expected to look for their content.
  void release(std::span<const int32_t> blocks, bool reuse_first = false);

  struct Match {
    std::vector<int32_t> blocks;      // referenced for the caller
    std::vector<ContentId> contents;  // content of each of these pages
  };
  // Words that tell tokens [first, first + count) from equal ones: what tokens stand for that are placeholders (image_words()).
  using PageWords = std::function<std::vector<int32_t>(int64_t first, int64_t count)>;
  // Returns the longest run of cached pages that holds a prefix of `tokens`, at most max_blocks pages, under the same salt and with the
  // same words; words: null = none.
  Match match_prefix(std::span<const int32_t> tokens, int64_t max_blocks, std::string_view salt = {},
                     const PageWords& words = {});
  // Offers a full page to the cache and returns its content. Where another page already has that content, that page stays cached, unless it
  // has no references, so that it may be reused before this one.
  ContentId register_block(int32_t block, ContentId parent, std::span<const int32_t> tokens, std::string_view salt = {},
                           std::span<const int32_t> words = {});

  // A pool of a group of layers that keeps windows alone registers pages as register_block(block, content, {}), where another pool gave the
  // content. find() returns the cached page, which gets no reference, or -1.
  int32_t find(ContentId content) const;
  void reference(int32_t block);  // adds a reference to a page of the cache

  // Takes a page out of the cache, so that no request finds it. Returns false, and changes nothing, where others have a reference
  // too.
  bool unregister_block(int32_t block);

  std::vector<ContentId> cached_contents() const;  // in no order; for checks
  // Throws kInternal, saying what, where something is inconsistent. `held` has one entry for every reference that requests hold.
  void check_integrity(std::span<const int32_t> held) const;

 private:
  struct Key {
    ContentId parent;
    std::vector<int32_t> tokens;
    bool operator==(const Key&) const = default;
  };
  // Returns the key of a full page. Words follow the tokens, behind a mark that is no character, and their number. The first page of a
  // sequence carries its salt behind all, so that contents of different salts have no common root.
  static Key make_key(ContentId parent, std::span<const int32_t> tokens, std::string_view salt, std::span<const int32_t> words);
  struct KeyHash {
    size_t operator()(const Key& key) const;
  };
  struct Content {
    ContentId id;
    int32_t block;
  };
  using ContentMap = std::unordered_map<Key, Content, KeyHash>;
  struct Block {
    int32_t references = 0;
    int32_t previous = -1, next = -1;  // free list; -1 = end
    ContentMap::iterator content;      // cache_.end() = none
  };

  void push_free(int32_t block);        // to be reused last
  void push_free_first(int32_t block);  // to be reused next
  void remove_free(int32_t block);
  void drop_content(Block& block);

  int64_t block_size_;
  bool caching_;
  std::vector<Block> blocks_;
  ContentMap cache_;
  std::function<void(ContentId)> on_drop_;
  ContentId next_content_ = 1;
  int32_t free_head_ = -1, free_tail_ = -1;
  int64_t num_free_ = 0;
};

}  // namespace lynx_rt
