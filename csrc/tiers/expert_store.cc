#include "tiers/expert_store.h"

#include <sys/mman.h>

#include <algorithm>
#include <limits>

#include "base/clock.h"
#include "base/error.h"
#include "base/memory.h"

namespace lynx_rt {

namespace {

std::vector<int64_t> layers_with_experts(const ExpertFile& file) {
  std::vector<int64_t> layers;
  for (int64_t l = 0; l < file.num_layers(); ++l)
    if (file.num_experts(l) > 0) layers.push_back(l);
  return layers;
}

int64_t max_experts(const ExpertFile& file) {
  int64_t most = 0;
  for (int64_t l = 0; l < file.num_layers(); ++l) most = std::max(most, file.num_experts(l));
  return most;
}

int64_t slots_in(int64_t budget, int64_t slot_bytes, const LowExperts* low) {
  const int64_t low_bytes = low ? low->bytes : 0, least = low_bytes + 2 * slot_bytes;
  if (budget < least)
    invalid("expert_memory", "expected room for two experts at least", low ? " beside their copies" : "", ", ", least,
            " bytes, got ", budget);
  return (budget - low_bytes) / slot_bytes;
}

std::vector<int64_t> quota(const ExpertFile& file, int64_t num_slots, int64_t spare) {
  spare = std::clamp<int64_t>(spare, 1, std::max<int64_t>(1, num_slots / 4));
  return uniform_quota(num_slots - spare, int64_t(layers_with_experts(file).size()), max_experts(file));
}

const ResidencyRule& checked(const ResidencyRule& rule) {
  if (rule.policy == ResidencyPolicy::kBelady || rule.policy == ResidencyPolicy::kRing)
    fail(ErrorCode::kUnsupported, "expert_policy",
         "expert_policy: expected lfu, lru, lfru, score, random, static or none; belady and ring are for simulations");
  return rule;
}

}  // namespace

ExpertStore::ExpertStore(std::shared_ptr<const ExpertFile> file, const ResidencyRule& rule, int64_t budget, int64_t spare,
                         ExpertStoreOptions options)
    : options_(std::move(options)),
      rule_(rule),
      file_(std::move(file)),
      slot_bytes_(file_->max_record_bytes()),
      arena_bytes_(slots_in(budget, slot_bytes_, options_.low.get()) * slot_bytes_),
      quota_(quota(*file_, arena_bytes_ / slot_bytes_, spare)),
      residency_(checked(rule), quota_, max_experts(*file_), options_.lists),
      reader_(options_.reader) {
  arena_ = static_cast<uint8_t*>(allocate_pages(arena_bytes_, "expert_memory"));
  absent_ = static_cast<uint8_t*>(allocate_pages(slot_bytes_, "expert_memory"));
  ::mprotect(absent_, size_t(slot_bytes_), PROT_NONE);
  for (int64_t s = 0; s < arena_bytes_ / slot_bytes_; ++s) {
    slots_.emplace_back().memory = arena_ + s * slot_bytes_;
    free_.push_back(int32_t(s));
  }
  for (const int64_t l : layers_with_experts(*file_)) {
    Layer& layer = layers_.emplace_back();
    const int64_t experts = file_->num_experts(l);
    layer.in_file = l;
    layer.slot.assign(size_t(experts), -1);
    layer.verified.assign(size_t(experts), 0);
    for (int32_t e = 0; e < experts; ++e) layer.experts.push_back(absent(num_layers() - 1, e));
  }
}

// Returns the views of an expert that is not in memory.
ExpertWeights ExpertStore::absent(int64_t layer, int32_t e) const {
  if (options_.low) return options_.low->experts[size_t(layer)][size_t(e)];
  return file_->layout(layers_[size_t(layer)].in_file, e).view(absent_);
}

ExpertStore::~ExpertStore() {
  // A read that hangs may still write to its slot, whose memory is then never freed.
  const double timeout = options_.reader.close_timeout_s;
  if (reader_.close(options_.io_timeout_s > 0 ? std::min(timeout, options_.io_timeout_s) : timeout))
    release_pages(arena_, arena_bytes_);
  release_pages(absent_, slot_bytes_);
}

ExpertStore::Lease ExpertStore::acquire(int64_t index, std::span<const int32_t> active, std::span<const int32_t> wanted,
                                        bool learn, std::span<const float> mass, std::span<const int32_t> needed) {
  if (leased_ >= 0) fail(ErrorCode::kInternal, "", "experts of layer ", index, ": those of layer ", leased_, " are in use");
  Layer& layer = layers_[size_t(index)];
  leased_ = index;
  hits_.clear(), misses_.clear(), given_.clear(), loading_.clear();
  next_miss_ = 0;
  const auto cost = residency_.cost(index);
  int64_t hits;
  if (options_.low) {
    hits = std::count_if(active.begin(), active.end(), [&](int32_t e) { return cost[size_t(e)] == 0; });
    divide_active(active, needed);
  } else {
    for (const int32_t e : active) (layer.slot[size_t(e)] >= 0 ? hits_ : misses_).push_back(e);
    hits = int64_t(hits_.size());
  }
  counters_.hits += hits;
  counters_.misses += int64_t(active.size()) - hits;
  if (learn) {
    counters_.decode_hits += hits;
    counters_.decode_misses += int64_t(active.size()) - hits;
    before_.assign(cost.begin(), cost.end());
    residency_.update(index, active, wanted, mass);
    // Experts that leave and are used now keep their slots until they have been computed.
    for (int32_t e = 0; e < int32_t(layer.slot.size()); ++e)
      if (before_[size_t(e)] == 0 && cost[size_t(e)] != 0 && !std::binary_search(hits_.begin(), hits_.end(), e)) vacate(index, e);
  }
  take_prefetched(active);
  start_reads();
  if (learn && options_.low) begin_newcomers();
  return Lease(this);
}

void ExpertStore::start_reads() {
  free_dropped();
  for (; next_miss_ < misses_.size() && !free_.empty(); ++next_miss_) {
    loading_.push_back(free_.back());
    begin_read(leased_, misses_[next_miss_], ReadPriority::kDemand);
  }
}

void ExpertStore::begin_read(int64_t index, int32_t e, ReadPriority priority) {
  const Layer& layer = layers_[size_t(index)];
  const ExpertRecord& record = file_->record(layer.in_file, e);
  Slot& slot = slots_[size_t(free_.back())];
  slot.layer = index;
  slot.expert = e;
  slot.reported = false;
  ReadRequest& r = slot.request;
  r.reset();
  r.file = file_->file();
  r.offset = record.offset;
  r.bytes = file_->layout(layer.in_file, e).bytes();
  r.to = slot.memory;
  // A record is checked when it is read for the first time; changes from then on are what check_unchanged() finds.
  r.crc32c = layer.verified[size_t(e)] ? std::nullopt : std::optional(record.crc32c);
  reader_.read(r, priority);
  free_.pop_back();
}

void ExpertStore::hint(int64_t index, std::span<const int32_t> experts) {
  if (!prefetching_.empty()) return;
  free_dropped();
  hinted_ = index;
  for (const int32_t e : experts) {
    if (!takes_hints()) return;
    if (layers_[size_t(index)].slot[size_t(e)] >= 0) continue;
    prefetching_.push_back(free_.back());
    begin_read(index, e, ReadPriority::kPrefetch);
    ++counters_.prefetched;
  }
}

// Makes demands of the prefetches that the lease needs, and drops the others. What failed is read again, as a demand.
void ExpertStore::take_prefetched(std::span<const int32_t> active) {
  for (const int32_t s : prefetching_) {
    Slot& slot = slots_[size_t(s)];
    // An expert that was hinted while it was being read for a lease has arrived since.
    const bool absent = layers_[size_t(hinted_)].slot[size_t(slot.expert)] < 0;
    const bool needed = absent && leased_ == hinted_ && std::binary_search(active.begin(), active.end(), slot.expert);
    if (needed && slot.request.state() != ReadState::kFailed) {
      reader_.promote(slot.request);
      std::erase(misses_, slot.expert);
      loading_.push_back(s);
      ++counters_.prefetch_used;
    } else {
      reader_.cancel(slot.request);
      dropped_.push_back(s);
    }
  }
  prefetching_.clear();
}

void ExpertStore::free_dropped() {
  std::erase_if(dropped_, [&](int32_t s) {
    if (!slots_[size_t(s)].request.done()) return false;
    free_.push_back(s);
    return true;
  });
}

void ExpertStore::wait(std::span<const int32_t> slots) {
  if (slots.empty()) fail(ErrorCode::kInternal, "", "an expert is missing, but nothing is being read and no slot is free");
  waited_.clear();
  for (const int32_t s : slots) waited_.push_back(&slots_[size_t(s)].request);
  const auto said = [&](double seconds) {
    const ReadRequest& r = *waited_[0];
    return str_cat(r.file->path(), ": the read of ", r.bytes, " bytes at byte ", r.offset, " has not ended after ",
                   shortest(seconds), " seconds");
  };
  const double start = now(), limit = options_.io_timeout_s > 0 ? options_.io_timeout_s : std::numeric_limits<double>::infinity();
  bool& reported = slots_[size_t(slots[0])].reported;
  double waited = 0;
  while (!reader_.wait_any(waited_, std::min(reported ? limit : options_.report_after_s, limit) - waited)) {
    waited = now() - start;
    if (waited >= limit) {
      counters_.wait_seconds += waited;
      ++counters_.num_failed;
      reader_.give_up(limit / 2);  // whatever began before this wait, or soon after
      throw StepError(ErrorCode::kDevice, "expert_file", str_cat(said(limit), " (io_timeout_s)"));
    }
    if (reported || waited < options_.report_after_s) continue;
    reported = true;
    if (options_.on_report) options_.on_report(str_cat(said(options_.report_after_s), "; a step waits for it"));
  }
  counters_.wait_seconds += now() - start;
}

std::span<const int32_t> ExpertStore::next() {
  if (leased_ < 0) fail(ErrorCode::kInternal, "", "no experts are in use");
  give_back();
  if (!hits_.empty()) {
    given_.swap(hits_);
    hits_.clear();
    return given_;
  }
  start_reads();
  while (loading_.empty() && next_miss_ < misses_.size()) {  // all free slots are those of dropped reads
    wait(dropped_);
    start_reads();
  }
  if (loading_.empty()) return {};
  const auto is_done = [&](int32_t s) { return slots_[size_t(s)].request.done(); };
  if (std::none_of(loading_.begin(), loading_.end(), is_done)) wait(loading_);
  // Requests that are done leave the list before anything is thrown.
  const auto done = std::stable_partition(loading_.begin(), loading_.end(), [&](int32_t s) { return !is_done(s); });
  const std::vector<int32_t> arrived(done, loading_.end());
  loading_.erase(done, loading_.end());
  const ReadRequest* failed = nullptr;
  for (const int32_t s : arrived) {
    Slot& slot = slots_[size_t(s)];
    if (slot.request.state() == ReadState::kReady) {
      install(s);
      given_.push_back(slot.expert);
    } else {
      free_.push_back(s);
      ++counters_.num_failed;
      failed = &slot.request;
    }
  }
  if (failed) throw StepError(failed->error_code(), "expert_file", failed->error());
  return given_;
}

void ExpertStore::install(int32_t s) {
  const Slot& slot = slots_[size_t(s)];
  Layer& layer = layers_[size_t(slot.layer)];
  const size_t e = size_t(slot.expert);
  layer.slot[e] = s;
  layer.verified[e] = 1;
  layer.experts[e] = file_->layout(layer.in_file, slot.expert).view(slot.memory);
  counters_.bytes_read += slot.request.bytes;
}

void ExpertStore::vacate(int64_t index, int32_t e) {
  Layer& layer = layers_[size_t(index)];
  int32_t& slot = layer.slot[size_t(e)];
  if (slot < 0) return;
  free_.push_back(slot);
  slot = -1;
  layer.experts[size_t(e)] = absent(index, e);
}

void ExpertStore::give_back() {
  for (const int32_t e : given_)
    if (residency_.cost(leased_)[size_t(e)] != 0) vacate(leased_, e);
  given_.clear();
}

// Reads are still on their way where the step has failed, and their slots must not be used before they have ended.
void ExpertStore::release() {
  for (const int32_t s : loading_) {
    reader_.cancel(slots_[size_t(s)].request);
    dropped_.push_back(s);
  }
  loading_.clear();
  given_.insert(given_.end(), hits_.begin(), hits_.end());
  give_back();
  Layer& layer = layers_[size_t(leased_)];
  for (const int32_t e : late_)
    if (layer.slot[size_t(e)] < 0) layer.experts[size_t(e)] = absent(leased_, e);
  late_.clear();
  begin_queued();
  queued_.clear();
  leased_ = -1;
}

void ExpertStore::check_integrity() const {
  const auto expect = [](bool holds, const auto&... what) {
    if (!holds) fail(ErrorCode::kInternal, "", "experts in memory: ", what...);
  };
  std::vector<const char*> owners(slots_.size(), nullptr);
  const auto own = [&](int32_t s, const char* owner) {
    expect(s >= 0 && size_t(s) < slots_.size(), "there is no slot ", s);
    expect(!owners[size_t(s)], "slot ", s, " is ", owner, " and ", owners[size_t(s)] ? owners[size_t(s)] : "");
    owners[size_t(s)] = owner;
  };
  for (const int32_t s : free_) {
    own(s, "free");
    expect(slots_[size_t(s)].request.state() != ReadState::kReading, "slot ", s, " is free and being read to");
  }
  for (const int32_t s : loading_) own(s, "loading");
  for (const int32_t s : prefetching_) own(s, "prefetching");
  for (const int32_t s : dropped_) own(s, "dropped");
  for (const int32_t s : arriving_) own(s, "arriving");
  for (size_t l = 0; l < layers_.size(); ++l) {
    const Layer& layer = layers_[l];
    for (size_t e = 0; e < layer.slot.size(); ++e) {
      const int32_t s = layer.slot[e];
      if (s >= 0) own(s, "an expert's");
      const auto* data = static_cast<const uint8_t*>(layer.experts[e].gate.data);
      if (s < 0 && options_.low && data == options_.low->experts[l][e].gate.data) continue;
      const bool late = int64_t(l) == leased_ && std::count(late_.begin(), late_.end(), int32_t(e)) > 0;
      expect(s >= 0 || !options_.low || late, "expert ", int64_t(e), " of layer ", int64_t(l), " is not its copy");
      const uint8_t* memory = s >= 0 ? slots_[size_t(s)].memory : absent_;
      expect(data >= memory && data < memory + slot_bytes_, "expert ", int64_t(e), " of layer ", int64_t(l),
             " is not in its slot");
    }
    const auto cost = residency_.cost(int64_t(l));
    expect(std::count(cost.begin(), cost.end(), 0) + int64_t(residency_.coming(int64_t(l)).size()) <= quota_[l], "layer ",
           int64_t(l), " has too many residents");
  }
  for (size_t s = 0; s < owners.size(); ++s) expect(owners[s], "slot ", int64_t(s), " is lost");
  for (const int32_t e : given_)
    expect(options_.low || layers_[size_t(leased_)].slot[size_t(e)] >= 0, "expert ", e, " was evicted while in use");
}

ExpertStoreStats ExpertStore::stats() const {
  ExpertStoreStats s = counters_;
  s.num_slots = int64_t(slots_.size());
  s.slot_bytes = slot_bytes_;
  s.low_bytes = options_.low ? options_.low->bytes : 0;
  const ReaderStats reader = reader_.stats();
  s.read_seconds = reader.busy_s - read_seconds_at_reset_;
  s.read_rate = reader.rate;
  s.read_depth = reader.depth;
  for (int64_t l = 0; l < num_layers(); ++l) {
    const auto cost = residency_.cost(l);
    s.num_resident += std::count(cost.begin(), cost.end(), 0);
  }
  return s;
}

void ExpertStore::reset_stats() {
  counters_ = {};
  read_seconds_at_reset_ = reader_.stats().busy_s;
}

}  // namespace lynx_rt
