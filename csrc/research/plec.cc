#include "research/plec.h"

#include <algorithm>
#include <numeric>
#include <tuple>
#include <utility>

#include "base/error.h"
#include "tiers/guesses.h"

namespace lynx_rt {

namespace {

class PlecRun {
 public:
  PlecRun(RecordedRouter& router, const TierSetup& setup)
      : router_(router),
        setup_(setup),
        guesses_(router.num_experts()),
        guessed_(size_t(router.num_layers())),
        experts_(size_t(router.num_layers() * router.num_experts())),
        cost_(size_t(router.num_experts())),
        out_(router.num_steps(), router.num_layers()) {
    const auto quota = quota_of(setup.residents, router.num_layers(), router.num_experts(), "residents");
    slots_ = std::accumulate(quota.begin(), quota.end(), int64_t{0});
  }

  TierSimulation run() && {
    for (step_ = 0; step_ < router_.num_steps(); ++step_) {
      const double start = now_;
      disk_ = std::max(disk_, now_);
      guess(router_.begin_step());
      done_ = 0;
      plan();
      for (int64_t l = 0; l < router_.num_layers(); ++l) layer(l);
      out_.seconds[size_t(step_)] = now_ - start;
    }
    return std::move(out_);
  }

 private:
  struct Expert {
    bool held = false;          // has a slot
    double left = 0;            // seconds until it is read
    bool planned = false;       // guessed for a layer to come, and has a share of the slots
    bool asked = false;         // was planned in this step when it was not in memory
    bool low = false;           // in the low-priority queue
    bool only_guessed = false;  // was read ahead, and nobody has used it
    bool in_use = false;
    int64_t since = 0;  // larger = used later, or later in the low-priority queue

    bool is_here() const { return held && left == 0; }
  };

  Expert& at(int64_t layer, int32_t e) { return experts_[size_t(layer * router_.num_experts() + e)]; }
  size_t cell(int64_t layer) const { return size_t(step_ * router_.num_layers() + layer); }

  void guess(std::span<const int64_t> rows) {
    for (Expert& x : experts_) x.asked = false;
    for (int64_t l = 0; l < router_.num_layers(); ++l) {
      guesses_.begin();
      for (const int64_t row : rows)
        guesses_.add_row(setup_.guesses + (row * router_.num_layers() + l) * router_.num_experts(), setup_.num_guesses);
      guessed_[size_t(l)] = guesses_.end();
      out_.guessed[cell(l)] = int32_t(guessed_[size_t(l)].size());
    }
  }

  // Divides the slots between the layers that are not done.
  void plan() {
    for (Expert& x : experts_) x.planned = false;
    queue_.clear();
    const auto share = shares();
    for (int64_t l = done_; l < router_.num_layers(); ++l)
      for (int64_t i = 0; i < share[size_t(l)]; ++i) {
        const int32_t e = guessed_[size_t(l)][size_t(i)];
        Expert& x = at(l, e);
        x.planned = true;
        x.low = false;
        if (x.is_here()) continue;
        queue_.push_back({l, e});
        out_.ahead[cell(l)] += !x.asked;
        x.asked = true;
      }
  }

  // Returns the slots of each layer, [L]: as many as are guessed, or in proportion to that; the largest remainders are rounded up.
  std::vector<int64_t> shares() const {
    std::vector<int64_t> share(guessed_.size(), 0), order;
    int64_t total = 0;
    for (size_t l = size_t(done_); l < guessed_.size(); ++l) total += int64_t(guessed_[l].size());
    if (total == 0) return share;
    int64_t given = 0;
    for (size_t l = size_t(done_); l < guessed_.size(); ++l) {
      const int64_t wanted = int64_t(guessed_[l].size());
      share[l] = std::min(wanted, slots_ * wanted / total);
      given += share[l];
      order.push_back(int64_t(l));
    }
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
      const auto rest = [&](int64_t l) { return slots_ * int64_t(guessed_[size_t(l)].size()) % total; };
      return rest(a) > rest(b);
    });
    for (size_t i = 0; i < order.size() && given < std::min(slots_, total); ++i, ++given) ++share[size_t(order[i])];
    return share;
  }

  // Gives the disk's time until now to the guesses.
  void read_ahead() {
    for (const auto& [l, e] : queue_) {
      if (disk_ >= now_) break;
      Expert& x = at(l, e);
      if (!x.planned) continue;  // its layer has begun
      if (!x.held) {
        if (!make_room(false)) break;
        ++held_;
        x.held = x.only_guessed = true;
        x.left = setup_.times.read;
      }
      const double took = std::min(x.left, now_ - disk_);
      disk_ += took;
      out_.disk[size_t(step_)] += took;
      // The rounding of sums must not leave a read unfinished.
      x.left = x.left - took < 1e-9 * setup_.times.read ? 0 : x.left - took;
    }
    disk_ = std::max(disk_, now_);
  }

  // Returns whether a slot is free, after it has evicted an expert where there was none; for a demand a planned one if it has to be.
  bool make_room(bool for_demand) {
    if (held_ < slots_) return true;
    using Rank = std::tuple<int, int64_t, int64_t>;  // evicted first: the smallest
    Expert* victim = nullptr;
    Rank least;
    for (size_t i = 0; i < experts_.size(); ++i) {
      Expert& x = experts_[i];
      if (!x.held || x.in_use || (x.planned && !for_demand)) continue;
      const int64_t l = int64_t(i) / router_.num_experts();
      const int kind = x.planned ? 3 : x.low ? 0 : l < done_ ? 1 : 2;
      const Rank rank{kind, kind == 3 ? -l : x.since, int64_t(i)};
      if (!victim || rank < least) std::tie(victim, least) = std::tuple(&x, rank);
    }
    if (!victim) return false;
    drop(*victim);
    return true;
  }

  void drop(Expert& x) {
    if (x.only_guessed) out_.wasted[size_t(step_)] += setup_.times.read - x.left;
    x.held = x.low = x.only_guessed = false;
    x.left = 0;
    --held_;
  }

  void layer(int64_t l) {
    now_ += setup_.times.layer;
    read_ahead();
    for (int32_t e = 0; e < int32_t(cost_.size()); ++e) cost_[size_t(e)] = !at(l, e).is_here();
    out_.retained_mass[size_t(step_)] += router_.route(l, cost_.data()).retained_mass;
    const auto used = router_.used();
    for (const int32_t e : guessed_[size_t(l)]) {
      Expert& x = at(l, e);
      x.planned = false;
      if (std::binary_search(used.begin(), used.end(), e)) {
        ++out_.guessed_used[cell(l)];
      } else if (x.is_here()) {
        x.low = true;
        x.since = ++events_;
      } else if (x.held) {
        drop(x);
      }
    }
    int64_t ready = 0;
    reads_.clear();
    for (const bool begun : {true, false})
      for (const int32_t e : used) {
        Expert& x = at(l, e);
        if (!x.is_here() && x.held == begun) reads_.push_back(e);
        if (!begun) continue;
        x.in_use = x.held;
        ready += x.is_here();
        out_.misses[cell(l)] += x.asked || !x.is_here();
        out_.needed[cell(l)] += x.asked;
        out_.in_time[cell(l)] += x.asked && x.is_here();
      }
    out_.used[cell(l)] = int32_t(used.size());
    out_.reads[cell(l)] = out_.misses[cell(l)];
    now_ += double(ready) * setup_.times.expert;
    for (const int32_t e : reads_) demand(at(l, e));
    for (const int32_t e : used) {
      Expert& x = at(l, e);
      x.low = x.only_guessed = false;
      x.since = ++events_;
    }
    read_ahead();
    for (const int32_t e : used) at(l, e).in_use = false;
    done_ = l + 1;
    plan();
  }

  void demand(Expert& x) {
    const double left = x.held ? x.left : setup_.times.read;
    if (!x.held && make_room(true)) {
      x.held = true;
      ++held_;
    }
    x.in_use = x.held;
    x.left = 0;
    disk_ += left;
    out_.disk[size_t(step_)] += left;
    out_.wait[size_t(step_)] += std::max(0.0, disk_ - now_);
    now_ = std::max(now_, disk_) + setup_.times.expert;
  }

  RecordedRouter& router_;
  const TierSetup& setup_;
  Guesses guesses_;
  std::vector<std::vector<int32_t>> guessed_;       // [L] of this step, the likeliest first
  std::vector<Expert> experts_;                     // [L, E]
  std::vector<std::pair<int64_t, int32_t>> queue_;  // planned experts that are not in memory, in order
  std::vector<uint8_t> cost_;
  std::vector<int32_t> reads_;
  int64_t slots_ = 0, held_ = 0, done_ = 0, step_ = 0, events_ = 0;
  double now_ = 0, disk_ = 0;  // disk_: has nothing to do before, apart from queue_
  TierSimulation out_;
};

}  // namespace

TierSimulation simulate_plec(RecordedRouter& router, const TierSetup& setup) {
  if (!setup.guesses) invalid("prefetch", "expert_policy plec needs guesses");
  return PlecRun(router, setup).run();
}

}  // namespace lynx_rt
