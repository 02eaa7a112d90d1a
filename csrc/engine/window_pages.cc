#include "engine/window_pages.h"

#include <algorithm>

#include "base/error.h"
#include "base/types.h"

namespace lynx_rt {

WindowPages::WindowPages(const PageGroups& groups, std::span<const int64_t> num_blocks, int64_t block_size,
                         bool enable_prefix_caching)
    : block_size_(block_size), groups_(groups.groups.begin() + 1, groups.groups.end()) {
  pools_.reserve(groups_.size());  // a pool has iterators into itself, so it stays where it is
  for (size_t g = 0; g < groups_.size(); ++g) pools_.emplace_back(num_blocks[g + 1], block_size, enable_prefix_caching);
}

bool WindowPages::allocate(Request& r, int64_t count) {
  for (const BlockPool& pool : pools_)
    if (pool.num_free() < count) return false;
  for (size_t g = 0; g < pools_.size(); ++g) pools_[g].allocate(count, r.windows[g].blocks);
  return true;
}

void WindowPages::release_behind(Request& r) {
  for (size_t g = 0; g < r.windows.size(); ++g) {
    Request::PageTable& table = r.windows[g];
    const size_t first = std::min(size_t(first_page(g, r.num_computed)), table.blocks.size());
    if (first <= table.num_freed) continue;
    const std::span<int32_t> behind = std::span(table.blocks).subspan(table.num_freed, first - table.num_freed);
    const size_t prompt_end = size_t(ceil_div(r.prompt_len, block_size_));
    const size_t of_prompt = std::min(std::max(prompt_end, table.num_freed) - table.num_freed, behind.size());
    pools_[g].release(behind.first(of_prompt));
    pools_[g].release(behind.subspan(of_prompt), true);
    std::fill(behind.begin(), behind.end(), kFreedBlock);
    table.num_freed = first;
  }
}

void WindowPages::release(Request& r) {
  for (size_t g = 0; g < r.windows.size(); ++g) pools_[g].release(std::span(r.windows[g].blocks).subspan(r.windows[g].num_freed));
  r.windows.clear();
}

void WindowPages::register_block(const Request& r, size_t page) {
  for (size_t g = 0; g < pools_.size(); ++g)
    if (page >= r.windows[g].num_freed) pools_[g].register_block(r.windows[g].blocks[page], r.contents[page], {});
}

bool WindowPages::is_shared(const Request& r, size_t page) const {
  for (size_t g = 0; g < pools_.size(); ++g)
    if (const Request::PageTable& t = r.windows[g]; page >= t.num_freed && pools_[g].num_references(t.blocks[page]) > 1)
      return true;
  return false;
}

// Returns whether the request has the page, or the prefix cache does, where all of its tokens are among the first num_tokens.
bool WindowPages::has_page(size_t g, const Request& r, int64_t page, int64_t num_tokens) const {
  if (g < r.windows.size() && size_t(page) >= r.windows[g].num_freed && size_t(page) < r.windows[g].blocks.size()) return true;
  if (size_t(page) >= r.contents.size() || (page + 1) * block_size_ > num_tokens) return false;
  return pools_[g].find(r.contents[size_t(page)]) >= 0;
}

int64_t WindowPages::longest_prefix(const Request& r, int64_t n) const {
  for (size_t g = 0; g < pools_.size();) {
    int64_t page = ceil_div(n, block_size_);
    const int64_t first = first_page(g, n);
    while (page > first && has_page(g, r, page - 1, n)) --page;
    if (page <= first) {
      ++g;
    } else {  // rows between that page and n see it too
      n = (page - 1) * block_size_;
      g = 0;
    }
  }
  return n;
}

void WindowPages::restore(Request& r, int64_t num_tokens) {
  r.windows.resize(pools_.size());
  const size_t full = size_t(num_tokens / block_size_), pages = size_t(ceil_div(num_tokens, block_size_));
  for (size_t g = 0; g < pools_.size(); ++g) {
    BlockPool& pool = pools_[g];
    Request::PageTable& table = r.windows[g];
    for (size_t i = std::max(full, table.num_freed); i < table.blocks.size(); ++i) pool.unregister_block(table.blocks[i]);
    if (const size_t kept = std::max(pages, table.num_freed); kept < table.blocks.size())
      pool.release(std::span(table.blocks).subspan(kept));
    if (table.blocks.size() < pages || table.num_freed > pages) table.num_freed = pages;
    table.blocks.resize(pages, kFreedBlock);
    while (int64_t(table.num_freed) > first_page(g, num_tokens)) {
      const int32_t block = pool.find(r.contents[--table.num_freed]);
      pool.reference(block);
      table.blocks[table.num_freed] = block;
    }
  }
}

void WindowPages::check_integrity(std::span<const Request* const> requests) const {
  for (size_t g = 0; g < pools_.size(); ++g) {
    std::vector<int32_t> held;
    for (const Request* r : requests) {
      if (r->windows.empty() && r->blocks.empty()) continue;
      if (r->windows.size() != pools_.size() || r->windows[g].blocks.size() != r->blocks.size())
        fail(ErrorCode::kInternal, "window_pages", "request ", r->id, " has not as many pages in group ", g + 1,
             " as in the first");
      const Request::PageTable& table = r->windows[g];
      for (size_t i = 0; i < table.blocks.size(); ++i) {
        if ((table.blocks[i] == kFreedBlock) != (i < table.num_freed))
          fail(ErrorCode::kInternal, "window_pages", "request ", r->id, ": page ", i, " of group ", g + 1, " is block ",
               table.blocks[i], ", but the first ", table.num_freed, " pages were given back");
        if (i >= table.num_freed) held.push_back(table.blocks[i]);
      }
      if (int64_t(table.num_freed) > first_page(g, r->num_computed))
        fail(ErrorCode::kInternal, "window_pages", "request ", r->id, ": ", table.num_freed, " pages of group ", g + 1,
             " were given back, but token ", r->num_computed, " sees page ", first_page(g, r->num_computed));
    }
    pools_[g].check_integrity(held);
  }
}

}  // namespace lynx_rt
