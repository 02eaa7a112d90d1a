#include "backend/cuda/expert_tier.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "base/types.h"
#include "routing/routing.h"

namespace lynx_rt::cuda {

ExpertTier::ExpertTier(const ExpertTierOptions& options, Stream stream)
    : options_(options),
      stream_(stream),
      slots_(options.rule, options.budget / options.slot_bytes, options.num_layers, options.num_experts, options.lists),
      owned_copies_(make_copy_stream()),
      copies_{owned_copies_.get()} {
  constexpr int64_t kAlignment = 128;  // a line of the second-level cache
  cost_at_ = round_up(options.num_experts * int64_t(sizeof(ExpertEntry)), kAlignment);
  layer_bytes_ = round_up(cost_at_ + options.num_experts, kAlignment);
  slot_memory_ = allocate_device(options.budget / options.slot_bytes * options.slot_bytes, "expert_memory");
  device_ = allocate_device(options.num_layers * layer_bytes_, "expert_memory");
  mirror_ = allocate_pinned(options.num_layers * layer_bytes_, "expert_memory");
  uses_ = allocate_device(options.num_layers * options.num_experts, "expert_memory");
  host_uses_ = allocate_pinned(options.num_layers * options.num_experts, "expert_memory");
}

ExpertTier::~ExpertTier() {
  try {
    synchronize(copies_);  // copies may still use the memory that is freed next
  } catch (const Error&) {
    // A copy failed; nothing uses its slot any more.
  }
}

char* ExpertTier::allocate_home(int64_t bytes) {
  home_memory_.push_back(allocate_pinned(bytes, "expert_memory"));
  return static_cast<char*>(home_memory_.back().get());
}

const ExpertEntry* ExpertTier::add_layer(std::vector<ExpertEntry> homes, std::vector<int64_t> bytes) {
  const int64_t layer = int64_t(homes_.size());
  if (layer == options_.num_layers || int64_t(homes.size()) != options_.num_experts)
    fail(ErrorCode::kInternal, "experts", "experts: expected ", options_.num_layers, " layers of ", options_.num_experts,
         ", got ", homes.size(), " of layer ", layer);
  std::vector<Home>& all = homes_.emplace_back();
  for (size_t e = 0; e < homes.size(); ++e) all.push_back({homes[e], bytes[e]});
  return at<ExpertEntry>(device_.get(), layer, 0);
}

void ExpertTier::start() {
  if (int64_t(homes_.size()) != options_.num_layers)
    fail(ErrorCode::kInternal, "experts", "experts: expected ", options_.num_layers, " layers, got ", homes_.size());
  change_tables();
  synchronize(stream_);  // the mirror may change again
  copied_.wait();
  change_tables();
  synchronize(stream_);
}

void ExpertTier::change_tables() {
  const std::span<const ExpertSlots::Move> moves = slots_.end_step(!slots_.moving() || copied_.done());
  int64_t first = options_.num_layers, last = -1;
  for (int64_t l = 0; l < options_.num_layers; ++l) {
    if (!slots_.changed(l)) continue;
    first = std::min(first, l), last = l;
    auto* table = at<ExpertEntry>(mirror_.get(), l, 0);
    for (int32_t e = 0; e < int32_t(options_.num_experts); ++e) {
      ExpertEntry& entry = table[e] = homes_[size_t(l)][size_t(e)].entry;
      if (const int32_t s = slots_.slot(l, e); s >= 0) {
        entry.down = slot(s) + (static_cast<const char*>(entry.down) - static_cast<const char*>(entry.gate_up));
        entry.gate_up = slot(s);
      }
    }
    std::ranges::copy(slots_.cost(l), at<uint8_t>(mirror_.get(), l, cost_at_));
  }
  if (last >= 0)
    copy_async(at<char>(device_.get(), first, 0), at<char>(mirror_.get(), first, 0), size_t((last + 1 - first) * layer_bytes_),
               stream_);
  for (const ExpertSlots::Move& m : moves) {
    const Home& home = homes_[size_t(m.layer)][size_t(m.expert)];
    copy_async(slot(m.slot), home.entry.gate_up, size_t(home.bytes), copies_);
    bytes_read_ += home.bytes;
  }
  if (!moves.empty()) copied_.record(copies_);
}

void ExpertTier::read_uses(int64_t num_layers) {
  copy_async(host_uses_.get(), uses_.get(), size_t(num_layers * options_.num_experts), stream_);
}

void ExpertTier::end_step(int64_t num_layers, bool learn) {
  const auto* uses = static_cast<const uint8_t*>(host_uses_.get());
  for (int64_t l = 0; l < num_layers; ++l) {
    used_.clear(), wanted_.clear();
    for (int32_t e = 0; e < int32_t(options_.num_experts); ++e) {
      const uint8_t use = uses[l * options_.num_experts + e];
      if (use & kWanted) wanted_.push_back(e);
      if (!(use & kRead)) continue;
      used_.push_back(e);
      if (slots_.slot(l, e) < 0) bytes_read_ += homes_[size_t(l)][size_t(e)].bytes;
    }
    slots_.note(l, used_, wanted_, learn);
  }
  change_tables();
}

ExpertStoreStats ExpertTier::stats() const {
  const ExpertSlots::Counts& c = slots_.counts();
  ExpertStoreStats s;
  s.num_slots = options_.budget / options_.slot_bytes;
  s.slot_bytes = options_.slot_bytes;
  s.num_resident = slots_.num_resident();
  s.hits = c.hits, s.misses = c.misses;
  s.decode_hits = c.decode_hits, s.decode_misses = c.decode_misses;
  s.late = c.late;
  s.bytes_read = bytes_read_;
  return s;
}

void ExpertTier::reset_stats() {
  slots_.reset_counts();
  bytes_read_ = 0;
}

}  // namespace lynx_rt::cuda
