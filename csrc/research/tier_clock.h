// A virtual clock of steps whose experts are partly on a disk.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

namespace lynx_rt {

// Seconds.
struct TierTimes {
  double layer = 0;   // of a layer before its experts are known: attention and router
  double expert = 0;  // to compute one expert, for all of its rows
  double read = 0;    // of one expert from the disk
};

// One processor, and one disk that serves one read after the other. A layer computes the experts that are there while it reads the
// others, each of which it computes when it has arrived. Reads ahead use the disk where no layer waits for it; a read that is found not
// to be needed is dropped at once, and one that is under way when its layer needs it comes first. Test: tests/tiers/test_tier_simulation.py.
class TierClock {
 public:
  explicit TierClock(const TierTimes& times) : times_(times) {}

  struct LayerResult {
    double wait = 0;      // seconds in which there was nothing to compute
    double wasted = 0;    // seconds of the disk for reads ahead that the layer did not need
    int32_t needed = 0;   // reads ahead that it needed
    int32_t in_time = 0;  // those of them that had arrived before the layer knew its experts
  };
  // Lets the disk be idle until now: what is hinted from here on begins now at the earliest.
  void begin_step();
  // Reads an expert of a layer to come, after all other reads.
  void hint(int64_t layer, int32_t expert);
  bool is_hinted(int64_t layer, int32_t expert) const;
  // Runs a layer. hits: experts in memory; reads: those that are read, of which it computes the ones in `used`. All rising. What is
  // hinted for the layer is over. Hints made after this call are behind its reads and begin when it knew its experts.
  LayerResult run(int64_t layer, int64_t num_hits, std::span<const int32_t> reads, std::span<const int32_t> used);
  double now() const { return now_; }

 private:
  struct Hint {
    int64_t layer;
    int32_t expert;
    double left;  // seconds
  };
  struct Read {
    double left;
    bool used;
  };
  void read_ahead();

  TierTimes times_;
  double now_ = 0, disk_ = 0;  // disk_: the disk has nothing to do before, apart from hints_
  std::vector<Hint> hints_;    // in order
  std::vector<Read> reads_;    // scratch of run()
};

}  // namespace lynx_rt
