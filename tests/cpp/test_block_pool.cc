// Tests csrc/engine/block_pool.h: references, the order of reuse, and the prefix cache.
#include "engine/block_pool.h"

#include <map>
#include <numeric>
#include <random>

#include "check.h"

using namespace lynx_rt;

namespace {

using Ids = std::vector<int32_t>;

Ids take(BlockPool& pool, int64_t count) {
  Ids out;
  CHECK(pool.allocate(count, out));
  return out;
}

// Registers the pages of `tokens` in order, as the scheduler does, and returns the last content.
ContentId register_all(BlockPool& pool, const Ids& blocks, const Ids& tokens) {
  ContentId content = kNoContent;
  size_t size = size_t(pool.block_size());
  for (size_t i = 0; i < blocks.size(); ++i)
    content = pool.register_block(blocks[i], content, std::span(tokens).subspan(i * size, size));
  return content;
}

Ids count_up(int32_t n, int32_t first = 0) {
  Ids out(size_t(n), 0);
  std::iota(out.begin(), out.end(), first);
  return out;
}

void test_allocate_and_release() {
  BlockPool pool(4, 16, true);
  CHECK_EQ(pool.num_blocks(), 4);
  CHECK_EQ(pool.num_free(), 4);
  Ids held = take(pool, 3);
  CHECK_EQ(held, (Ids{0, 1, 2}));
  Ids more = {7};
  CHECK(!pool.allocate(2, more));
  CHECK_EQ(more, Ids{7});  // nothing taken, nothing written
  CHECK_EQ(pool.num_free(), 1);
  CHECK(pool.allocate(0, more));
  pool.check_integrity(held);
  pool.release(held);
  CHECK_EQ(pool.num_free(), 4);
  pool.check_integrity({});
  // Block 3 has been free the longest. The blocks just released come next, the last page first.
  CHECK_EQ(take(pool, 4), (Ids{3, 2, 1, 0}));
}

// Contents of different salts have no page in common, whatever the tokens are: also where a salt has the bytes of tokens.
void test_salts_keep_contents_apart() {
  BlockPool pool(8, 2, true);
  const Ids tokens = {1, 2, 3, 4};
  const std::string salts[] = {"", "a", "ab", std::string("a\0", 2)};
  std::vector<Ids> blocks;
  for (const std::string& salt : salts) {
    CHECK_EQ(pool.match_prefix(tokens, 2, salt).blocks.size(), 0);
    const Ids own = take(pool, 2);
    const ContentId first = pool.register_block(own[0], kNoContent, std::span(tokens).first(2), salt);
    pool.register_block(own[1], first, std::span(tokens).last(2), salt);
    pool.release(own);
    blocks.push_back(own);
  }
  for (size_t i = 0; i < blocks.size(); ++i) CHECK_EQ(pool.match_prefix(tokens, 2, salts[i]).blocks, blocks[i]);
  CHECK_EQ(pool.match_prefix(Ids{1, 2, 'a', 0}, 2, "").blocks.size(), 1);
}

void test_prefix_is_found() {
  BlockPool pool(8, 2, true);
  Ids tokens = count_up(7), blocks = take(pool, 3);
  register_all(pool, blocks, tokens);
  BlockPool::Match all = pool.match_prefix(tokens, 8);
  CHECK_EQ(all.blocks, blocks);  // the seventh token's page is not full
  pool.release(all.blocks);
  BlockPool::Match capped = pool.match_prefix(tokens, 2);
  CHECK_EQ(capped.blocks, (Ids{blocks[0], blocks[1]}));
  pool.release(capped.blocks);
  Ids other = {0, 1, 9, 3, 4, 5};
  BlockPool::Match first = pool.match_prefix(other, 8);
  CHECK_EQ(first.blocks, Ids{blocks[0]});
  // Tokens that follow another prefix are other content, even if the tokens are equal.
  CHECK(pool.match_prefix(Ids{2, 3, 4, 5}, 8).blocks.empty());
  Ids held = blocks;
  held.push_back(blocks[0]);
  pool.check_integrity(held);
  pool.release(first.blocks);
  pool.check_integrity(blocks);
}

void test_content_survives_release_until_reuse() {
  BlockPool pool(3, 2, true);
  Ids tokens = count_up(6), blocks = take(pool, 3);
  register_all(pool, blocks, tokens);
  pool.release(blocks);
  CHECK_EQ(pool.num_free(), 3);
  BlockPool::Match match = pool.match_prefix(tokens, 3);
  CHECK_EQ(match.blocks, blocks);
  CHECK_EQ(pool.num_free(), 0);
  pool.release(match.blocks);
  // The end of the prefix is reused first, so that its beginning can still be matched.
  Ids taken = take(pool, 1);
  CHECK_EQ(taken, Ids{blocks[2]});
  match = pool.match_prefix(tokens, 3);
  CHECK_EQ(match.blocks, (Ids{blocks[0], blocks[1]}));
  pool.release(match.blocks);
  pool.check_integrity(taken);
}

// Pages that were matched most recently are reused last.
void test_least_recently_used() {
  BlockPool pool(4, 1, true);
  Ids a = take(pool, 2), b = take(pool, 2);
  register_all(pool, a, {1, 2});
  register_all(pool, b, {5, 6});
  pool.release(a);
  pool.release(b);
  pool.release(pool.match_prefix(Ids{1, 2}, 2).blocks);  // uses a again
  Ids taken = take(pool, 2);
  CHECK_EQ(taken, (Ids{b[1], b[0]}));
  CHECK_EQ(pool.match_prefix(Ids{1, 2}, 2).blocks, a);
}

void test_reuse_first() {
  BlockPool pool(4, 2, true);
  const Ids blocks = take(pool, 4);
  pool.release(std::span(blocks).first(2));
  pool.release(std::span(blocks).subspan(2), true);
  pool.check_integrity({});
  CHECK_EQ(take(pool, 3), (Ids{blocks[2], blocks[3], blocks[1]}));
  BlockPool empty(1, 2, true);
  const Ids only = take(empty, 1);
  empty.release(only, true);
  empty.check_integrity({});
  CHECK_EQ(take(empty, 1), only);
}

// Pages of a group with a window are found by the content that another pool gave.
void test_find_by_content() {
  BlockPool pool(3, 2, true);
  const Ids blocks = take(pool, 2);
  pool.register_block(blocks[0], 7, {});
  CHECK_EQ(pool.find(7), blocks[0]);
  CHECK_EQ(pool.find(8), -1);
  pool.release(blocks);
  pool.reference(pool.find(7));
  pool.check_integrity(Ids{blocks[0]});
  CHECK_EQ(take(pool, 2).size(), 2u);
  CHECK_EQ(pool.find(7), blocks[0]);
  pool.release(Ids{blocks[0]});
  take(pool, 1);
  CHECK_EQ(pool.find(7), -1);
}

void test_same_content_twice() {
  BlockPool pool(4, 2, true);
  Ids first = take(pool, 1), second = take(pool, 1);
  ContentId content = pool.register_block(first[0], kNoContent, Ids{1, 2});
  CHECK_EQ(pool.register_block(second[0], kNoContent, Ids{1, 2}), content);
  CHECK(pool.register_block(take(pool, 1)[0], content, Ids{1, 2}) != content);
  BlockPool::Match match = pool.match_prefix(Ids{1, 2}, 1);
  CHECK_EQ(match.blocks, first);
  CHECK_EQ(match.contents.back(), content);
}

void test_caching_off() {
  BlockPool pool(4, 2, false);
  Ids blocks = take(pool, 2), tokens = count_up(4);
  register_all(pool, blocks, tokens);
  CHECK(pool.match_prefix(tokens, 2).blocks.empty());
  pool.check_integrity(blocks);
}

void test_integrity_finds_wrong_references() {
  BlockPool pool(2, 2, true);
  Ids blocks = take(pool, 1);
  CHECK_THROWS(pool.check_integrity({}), ErrorCode::kInternal, "block_pool", {"block 0 has 1 references, but requests hold 0"});
  CHECK_THROWS(pool.check_integrity(Ids{0, 1}), ErrorCode::kInternal, "block_pool", {"block 1 has 0 references"});
}

// Compares random use with a plain model of the contents: pages that are found must hold exactly the requested prefix.
void test_random_use() {
  constexpr int64_t kBlocks = 13, kSize = 2;
  std::mt19937 random(7);
  auto below = [&](size_t n) { return random() % n; };
  BlockPool pool(kBlocks, kSize, true);
  std::map<int32_t, Ids> prefix_of;  // block -> all tokens up to its end, as last registered
  std::vector<Ids> held;
  int64_t found = 0;
  for (int round = 0; round < 5000; ++round) {
    if (!held.empty() && below(2)) {
      size_t victim = below(held.size());
      pool.release(held[victim]);
      held.erase(held.begin() + int64_t(victim));
    } else {
      Ids tokens;
      for (size_t i = 0, n = kSize * (1 + below(4)); i < n; ++i) tokens.push_back(int32_t(below(2)));
      int64_t pages = int64_t(tokens.size()) / kSize;
      BlockPool::Match match = pool.match_prefix(tokens, pages);
      found += int64_t(match.blocks.size());
      for (size_t i = 0; i < match.blocks.size(); ++i)
        CHECK_EQ(prefix_of[match.blocks[i]], Ids(tokens.begin(), tokens.begin() + int64_t(i + 1) * kSize));
      Ids blocks = match.blocks;
      ContentId content = match.contents.empty() ? kNoContent : match.contents.back();
      size_t known = blocks.size();
      if (!pool.allocate(pages - int64_t(known), blocks)) {
        pool.release(blocks);
        continue;
      }
      for (size_t i = known; i < blocks.size(); ++i) {
        prefix_of[blocks[i]] = Ids(tokens.begin(), tokens.begin() + int64_t(i + 1) * kSize);
        content = pool.register_block(blocks[i], content, std::span(tokens).subspan(i * kSize, kSize));
      }
      held.push_back(blocks);
    }
    Ids references;
    for (const Ids& blocks : held) references.insert(references.end(), blocks.begin(), blocks.end());
    pool.check_integrity(references);
  }
  CHECK(found > 100);
}

}  // namespace

int main() {
  test_allocate_and_release();
  test_salts_keep_contents_apart();
  test_prefix_is_found();
  test_content_survives_release_until_reuse();
  test_least_recently_used();
  test_reuse_first();
  test_find_by_content();
  test_same_content_twice();
  test_caching_off();
  test_integrity_finds_wrong_references();
  test_random_use();
  return check::result("test_block_pool");
}
