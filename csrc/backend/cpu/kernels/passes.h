// Passes over rows of x, whose numbers the compiler knows: a register tile has its sums in registers only then.
#pragma once
#include <cstdint>

namespace {

template <int R>
struct RowCount {
  static constexpr int number = R;
};

template <int R, class Pass>
inline void pass_of(int64_t rows, const Pass& pass) {
  if (rows == R) return pass(RowCount<R>());
  if constexpr (R > 1) pass_of<R - 1>(rows, pass);
}

// Calls pass(RowCount<R>, first row) for parts of `count` rows: as few parts as possible, of about equal numbers R <= Most.
template <int Most, class Pass>
inline void in_passes(int64_t count, const Pass& pass) {
  int64_t j = 0, now;
  for (int64_t passes = (count + Most - 1) / Most; passes > 0; --passes, j += now) {
    now = (count - j + passes - 1) / passes;
    pass_of<Most>(now, [&](auto rows) { pass(rows, j); });
  }
}

}  // namespace
