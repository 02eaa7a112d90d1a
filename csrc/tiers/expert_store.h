// Experts of which only some are in memory; the others are read from an expert file when a step needs them.
#pragma once
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "tiers/direct_reader.h"
#include "tiers/expert_file.h"
#include "tiers/low_experts.h"
#include "tiers/residency.h"
#include "tiers/routing_costs.h"

namespace lynx_rt {

// Counters since construction or reset_stats(), and gauges.
struct ExpertStoreStats {
  int64_t num_slots = 0, slot_bytes = 0;  // gauges: experts that there is memory for, and the bytes of one
  int64_t num_resident = 0;               // gauge: experts that stay in memory
  int64_t low_bytes = 0;                  // gauge: of copies in low precision
  // Experts that layers used and that were in memory, or had to be read; with low copies: that were resident, or computed from their copies.
  int64_t hits = 0, misses = 0;
  int64_t decode_hits = 0, decode_misses = 0;  // those of them in steps that learn
  int64_t bytes_read = 0;                      // of records that arrived
  int64_t num_failed = 0;                      // reads
  int64_t prefetched = 0;                      // experts whose reads hints began
  int64_t prefetch_used = 0;                   // those of them that the step used
  int64_t late = 0;                            // with low copies: hits that had not arrived, so that the step waited
  double wait_seconds = 0;                     // time in which a step had nothing to compute before an expert arrived
  double read_seconds = 0;                     // time in which something was being read
  double read_rate = 0;                        // bytes per second of that time, lately; 0 = nothing was read yet
  int64_t read_depth = 0;                      // pieces of 1 MiB that are read at a time
};

struct ExpertStoreOptions {
  ReaderOptions reader;
  ExpertHistory lists = {};                    // of the policy static, see Residency
  std::shared_ptr<const LowExperts> low = {};  // of the same experts; for a rule with `low`, null for others
  // How long next() waits without a read that ends before it throws, and the longest time for which the destructor waits for reads that
  // hang; 0 = next() waits without end, the destructor for reader.close_timeout_s.
  double io_timeout_s = 0;
  double report_after_s = 10;                              // a read that next() has waited for so long is reported, once
  std::function<void(const std::string&)> on_report = {};  // may be empty
};

// The choice of experts that stay is a function of the routing of steps alone (Residency), so that the speed of the disk changes no result.
// An expert that is read goes to a slot. The slot becomes the expert's own if the expert stays, and is free again after the layer if it
// does not.
//
// With low copies, a step computes experts that are not resident from their copies, and reads nothing for itself, but those that the rule's
// thresholds make it read (ResidencyRule::full). Experts that become
// resident are read in the background, from the step on that decides it (hi_lo: one exchange ahead). The next step takes them to be there,
// and waits where they are not, since another choice would make results depend on the speed of the disk.
//
// Thread-safety: calls come from one thread at a time. Test: tests/cpp/test_expert_store.cc.
class ExpertStore : public RoutingCosts {
 public:
  // Takes `budget` bytes, low copies included; slots for `spare` experts (at most a quarter of all) are kept for experts that pass through.
  // Layers of the store are the file's layers that have experts. Throws kInvalidArgument (field expert_memory) where the budget has room
  // for fewer than two experts; kUnsupported (field expert_policy) for a policy of simulations; kOutOfMemory.
  ExpertStore(std::shared_ptr<const ExpertFile> file, const ResidencyRule& rule, int64_t budget, int64_t spare,
              ExpertStoreOptions options = {});
  ~ExpertStore() override;
  ExpertStore(const ExpertStore&) = delete;

  // The experts that a layer's step uses. next() and the destructor belong to it; there is one lease at a time.
  class Lease {
   public:
    Lease() = default;
    Lease(Lease&& other) noexcept : store_(std::exchange(other.store_, nullptr)) {}
    Lease& operator=(Lease&& other) noexcept {
      std::swap(store_, other.store_);
      return *this;
    }
    ~Lease() {
      if (store_) store_->release();
    }

   private:
    friend class ExpertStore;
    explicit Lease(ExpertStore* store) : store_(store) {}
    ExpertStore* store_ = nullptr;
  };

  // Sets how much is read at a time to what the file's disk can use; see measure_depth(DirectReader&). While no lease is held.
  void measure_depth() { lynx_rt::measure_depth(reader_, file_->file()); }

  int64_t num_layers() const { return int64_t(layers_.size()); }
  // Constant until acquire().
  std::span<const uint8_t> cost(int64_t layer) const override { return residency_.cost(layer); }
  // Returns all experts of the layer. Shapes and formats are always valid; the values of an expert between the next() that returns it
  // and the end of the lease. Other values lie in pages that cannot be read, so that a mistake ends the process.
  std::span<const ExpertWeights> experts(int64_t layer) const { return layers_[size_t(layer)].experts; }
  // Begins to read what is missing. `active`: the experts that the step uses; `wanted`: those of the model's own routing, both rising;
  // mass: see Residency::update(). `learn`: uses count, and what is read may stay. With low copies: `needed`, rising, are those of `active`
  // that are not resident and computed in full all the same.
  [[nodiscard]] Lease acquire(int64_t layer, std::span<const int32_t> active, std::span<const int32_t> wanted, bool learn,
                              std::span<const float> mass = {}, std::span<const int32_t> needed = {});
  // The rule by which experts stay.
  const ResidencyRule& rule() const { return rule_; }
  // Returns the next experts to compute: first those in memory, then those that have arrived, for which it waits. Empty: there were no
  // more. The slots of experts that do not stay are used again, so what earlier calls returned is over. Throws StepError where a read
  // failed, or none ended for io_timeout_s; slots of reads that hang are used again once these have ended.
  std::span<const int32_t> next();
  // Whether hint() would begin a read: a slot is free that the lease does not need.
  bool takes_hints() const { return next_miss_ == misses_.size() && !free_.empty(); }
  // Begins to read experts that the next lease, of `layer`, may need, the likeliest first, as far as slots are free. Reads for leases go
  // before these. What the lease does not need is dropped. Changes no result, whatever the hint.
  void hint(int64_t layer, std::span<const int32_t> experts);
  // Throws kCorruptFile where the file was written to since it was opened.
  void check_unchanged() const { file_->file()->check_unchanged(); }
  // Verifies that every slot has one owner, that none is free while something is read to it, that an expert's views point to its slot, and
  // that no layer has more residents than its share. Throws kInternal saying what is inconsistent.
  void check_integrity() const;
  ExpertStoreStats stats() const;
  double wait_seconds() const { return counters_.wait_seconds; }  // of stats(), which counts residents and asks the reader
  void reset_stats();

 private:
  struct Layer {
    int64_t in_file = 0;  // number of the layer in the file
    std::vector<ExpertWeights> experts;
    std::vector<int32_t> slot;      // [E], -1 = not in memory
    std::vector<uint8_t> verified;  // [E] whether the record's checksum was compared once
  };
  struct Slot {
    uint8_t* memory = nullptr;
    ReadRequest request;
    int64_t layer = -1;  // of the expert that is being read
    int32_t expert = -1;
    bool reported = false;  // that the read takes long
  };

  void release();
  void start_reads();
  void begin_read(int64_t layer, int32_t expert, ReadPriority priority);  // to the last free slot
  void take_prefetched(std::span<const int32_t> active);
  ExpertWeights absent(int64_t layer, int32_t expert) const;
  // With low copies: expert_store_low.cc.
  void divide_active(std::span<const int32_t> active, std::span<const int32_t> needed);
  void install_arrived();
  std::vector<int32_t>::iterator find_arriving(int64_t layer, int32_t expert);
  void begin_newcomers();
  void begin_queued();
  void free_dropped();
  void wait(std::span<const int32_t> slots);  // until one of their reads is done; throws StepError after io_timeout_s
  void give_back();                           // frees the slots of the experts that next() returned last and that do not stay
  void vacate(int64_t layer, int32_t expert);
  void install(int32_t slot);  // whose read has ended

  const ExpertStoreOptions options_;
  const ResidencyRule rule_;
  std::shared_ptr<const ExpertFile> file_;
  int64_t slot_bytes_, arena_bytes_;
  uint8_t *arena_ = nullptr, *absent_ = nullptr;
  std::vector<Layer> layers_;
  std::deque<Slot> slots_;  // requests do not move
  std::vector<int32_t> free_;
  std::vector<int64_t> quota_;  // [layers] residents at most
  Residency residency_;
  DirectReader reader_;
  // The lease's.
  int64_t leased_ = -1;
  std::vector<int32_t> hits_, misses_, given_;
  size_t next_miss_ = 0;
  std::vector<int32_t> loading_;  // slots
  std::vector<int32_t> dropped_;  // slots of cancelled reads, which are perhaps still being written to
  // With low copies.
  std::vector<int32_t> arriving_;  // slots of residents, or residents to come, that are being read in the background
  std::vector<int32_t> late_;      // [lease] residents that had not arrived, and experts that are needed in full
  std::vector<int32_t> queued_;    // [lease] experts to be read in the background once slots are free
  // Slots of hints.
  int64_t hinted_ = -1;               // layer of prefetching_
  std::vector<int32_t> prefetching_;  // for the lease to come
  std::vector<ReadRequest*> waited_;  // scratch of wait()
  std::vector<uint8_t> before_;       // [E] costs
  ExpertStoreStats counters_;
  double read_seconds_at_reset_ = 0;
};

}  // namespace lynx_rt
