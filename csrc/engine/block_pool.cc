#include "engine/block_pool.h"

#include "base/error.h"

namespace lynx_rt {

size_t BlockPool::KeyHash::operator()(const Key& key) const {
  // FNV-1a over the words. It only spreads keys over buckets; equality is decided by Key.
  uint64_t h = 14695981039346656037ull ^ uint64_t(key.parent);
  for (int32_t t : key.tokens) h = (h ^ uint32_t(t)) * 1099511628211ull;
  return size_t(h ^ (h >> 32));
}

BlockPool::BlockPool(int64_t num_blocks, int64_t block_size, bool enable_prefix_caching)
    : block_size_(block_size), caching_(enable_prefix_caching), blocks_(size_t(num_blocks)) {
  for (int64_t b = 0; b < num_blocks; ++b) {
    blocks_[size_t(b)].content = cache_.end();
    push_free(int32_t(b));
  }
}

void BlockPool::push_free(int32_t b) {
  Block& block = blocks_[size_t(b)];
  block.previous = free_tail_;
  block.next = -1;
  (free_tail_ < 0 ? free_head_ : blocks_[size_t(free_tail_)].next) = b;
  free_tail_ = b;
  ++num_free_;
}

void BlockPool::push_free_first(int32_t b) {
  Block& block = blocks_[size_t(b)];
  block.previous = -1;
  block.next = free_head_;
  (free_head_ < 0 ? free_tail_ : blocks_[size_t(free_head_)].previous) = b;
  free_head_ = b;
  ++num_free_;
}

void BlockPool::remove_free(int32_t b) {
  Block& block = blocks_[size_t(b)];
  (block.previous < 0 ? free_head_ : blocks_[size_t(block.previous)].next) = block.next;
  (block.next < 0 ? free_tail_ : blocks_[size_t(block.next)].previous) = block.previous;
  block.previous = block.next = -1;
  --num_free_;
}

void BlockPool::drop_content(Block& block) {
  if (block.content == cache_.end()) return;
  const ContentId content = block.content->second.id;
  cache_.erase(block.content);
  block.content = cache_.end();
  if (on_drop_) on_drop_(content);
}

bool BlockPool::allocate(int64_t count, std::vector<int32_t>& out) {
  if (count > num_free_) return false;
  for (int64_t i = 0; i < count; ++i) {
    int32_t b = free_head_;
    remove_free(b);
    Block& block = blocks_[size_t(b)];
    drop_content(block);
    block.references = 1;
    out.push_back(b);
  }
  return true;
}

void BlockPool::release(std::span<const int32_t> blocks, bool reuse_first) {
  for (size_t i = blocks.size(); i-- > 0;) {
    Block& block = blocks_[size_t(blocks[i])];
    if (--block.references == 0) reuse_first ? push_free_first(blocks[i]) : push_free(blocks[i]);
  }
}

BlockPool::Key BlockPool::make_key(ContentId parent, std::span<const int32_t> tokens, std::string_view salt,
                                   std::span<const int32_t> words) {
  Key key{parent, {tokens.begin(), tokens.end()}};
  if (!words.empty()) {
    key.tokens.insert(key.tokens.end(), {INT32_MIN, int32_t(words.size())});
    key.tokens.insert(key.tokens.end(), words.begin(), words.end());
  }
  if (parent == kNoContent) key.tokens.insert(key.tokens.end(), salt.begin(), salt.end());
  return key;
}

BlockPool::Match BlockPool::match_prefix(std::span<const int32_t> tokens, int64_t max_blocks, std::string_view salt,
                                         const PageWords& words) {
  Match match;
  if (!caching_) return match;
  ContentId parent = kNoContent;
  for (int64_t i = 0; i < max_blocks && (i + 1) * block_size_ <= int64_t(tokens.size()); ++i) {
    auto part = tokens.subspan(size_t(i * block_size_), size_t(block_size_));
    auto it = cache_.find(make_key(parent, part, salt, words ? words(i * block_size_, block_size_) : std::vector<int32_t>()));
    if (it == cache_.end()) break;
    int32_t b = it->second.block;
    reference(b);
    match.blocks.push_back(b);
    match.contents.push_back(parent = it->second.id);
  }
  return match;
}

ContentId BlockPool::register_block(int32_t b, ContentId parent, std::span<const int32_t> tokens, std::string_view salt,
                                    std::span<const int32_t> words) {
  if (!caching_) return kNoContent;
  auto [it, added] = cache_.try_emplace(make_key(parent, tokens, salt, words), Content{next_content_, b});
  if (added) {
    ++next_content_;
    blocks_[size_t(b)].content = it;
  } else if (Block& other = blocks_[size_t(it->second.block)]; other.references == 0) {
    other.content = cache_.end();
    it->second.block = b;
    blocks_[size_t(b)].content = it;
  }
  return it->second.id;
}

int32_t BlockPool::find(ContentId content) const {
  const auto it = cache_.find(Key{content, {}});
  return it == cache_.end() ? -1 : it->second.block;
}

void BlockPool::reference(int32_t b) {
  if (blocks_[size_t(b)].references++ == 0) remove_free(b);
}

bool BlockPool::unregister_block(int32_t b) {
  Block& block = blocks_[size_t(b)];
  if (block.references > 1) return false;
  drop_content(block);
  return true;
}

std::vector<ContentId> BlockPool::cached_contents() const {
  std::vector<ContentId> out;
  for (const auto& [key, content] : cache_) out.push_back(content.id);
  return out;
}

void BlockPool::check_integrity(std::span<const int32_t> held) const {
  std::vector<int32_t> references(blocks_.size(), 0);
  for (int32_t b : held) ++references[size_t(b)];
  int64_t with_content = 0;
  for (size_t b = 0; b < blocks_.size(); ++b) {
    if (references[b] != blocks_[b].references)
      fail(ErrorCode::kInternal, "block_pool", "block ", b, " has ", blocks_[b].references, " references, but requests hold ",
           references[b]);
    auto content = blocks_[b].content;
    if (content == ContentMap::iterator() || content == const_cast<ContentMap&>(cache_).end()) continue;
    ++with_content;
    if (content->second.block != int32_t(b))
      fail(ErrorCode::kInternal, "block_pool", "block ", b, " claims the content of block ", content->second.block);
  }
  if (with_content != int64_t(cache_.size()))
    fail(ErrorCode::kInternal, "block_pool", with_content, " blocks have content, but the cache lists ", cache_.size());
  int64_t listed = 0;
  for (int32_t b = free_head_, previous = -1; b >= 0; previous = b, b = blocks_[size_t(b)].next) {
    if (blocks_[size_t(b)].references != 0) fail(ErrorCode::kInternal, "block_pool", "free block ", b, " is referenced");
    if (blocks_[size_t(b)].previous != previous) fail(ErrorCode::kInternal, "block_pool", "free list is broken at block ", b);
    if (++listed > num_blocks()) fail(ErrorCode::kInternal, "block_pool", "free list has a cycle");
  }
  int64_t unreferenced = 0;
  for (const Block& block : blocks_) unreferenced += block.references == 0;
  if (listed != num_free_ || listed != unreferenced)
    fail(ErrorCode::kInternal, "block_pool", "free list has ", listed, " blocks, ", num_free_, " counted, ", unreferenced,
         " unreferenced");
}

}  // namespace lynx_rt
