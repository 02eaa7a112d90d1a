// Selection in which experts that cost nothing are preferred. z is a row's keys.
#include <algorithm>
#include <cmath>

#include "routing/selector_batch.h"

namespace lynx_rt {

void Selector::assign_resident(const Batch& batch, const Routing& own) {
  const int k = batch.top_k;
  const double bonus = batch.selection.resident, limit = -std::log(batch.selection.refill);
  if (admits(batch.selection.policy) && batch.num_rows > 1) {
    admit(batch, own);
  } else {
    std::fill_n(admitted_.begin(), batch.num_experts, 0);
    admit_exact_rows(batch, own);
  }
  for (int e = 0; e < batch.num_experts; ++e) admitted_[size_t(e)] |= batch.cost[e] == 0;  // from here on: free
  list_admitted(batch.num_experts);

  for (int64_t t = 0; t < batch.num_rows; ++t) {
    const float* z = batch.keys_of(t);
    const int32_t* wanted = own.ids + t * k;
    int32_t* ids = assigned_.data() + t * k;
    if (batch.is_exact(t)) {
      std::copy_n(wanted, k, ids);
      continue;
    }
    const auto ranks_before = [z](int32_t a, int32_t b) { return z[a] != z[b] ? z[a] > z[b] : a < b; };
    // An expert that is not free can only be an own choice: k others are before any other one. So two ranked lists are merged.
    const int num_free = pick_best(z, admitted_list_, k, free_.data());
    for (int j = 0, paid = 0, free = 0; j < k; ++j) {
      while (paid < k && admitted_[size_t(wanted[paid])]) ++paid;
      bool takes_free = free < num_free;
      if (takes_free && paid < k) {
        const int32_t a = free_[size_t(free)], b = wanted[paid];
        const double value_a = z[a] + bonus, value_b = z[b] + (paid == 0 ? bonus : 0);
        takes_free = value_a != value_b ? value_a > value_b : ranks_before(a, b);
      }
      ids[j] = takes_free ? free_[size_t(free++)] : wanted[paid++];
    }
    std::sort(ids, ids + k, ranks_before);
    drop_refills(z, wanted, k, limit, ids);
  }
}

}  // namespace lynx_rt
