#include "checkpoint/weight_pieces.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "base/error.h"

namespace lynx_rt {

namespace {

// The numbers begin, begin + step, ..: `count` of them.
struct Progression {
  int64_t begin, count, step;
  int64_t last() const { return begin + (count - 1) * step; }
};

Progression rows_of(const WeightPiece& p) { return {p.row_begin, p.rows, p.row_step}; }
Progression cols_of(const WeightPiece& p) { return {p.col_begin, p.cols, p.col_step}; }

// Returns whether two progressions that are not empty have a number in common. Common numbers recur at the lcm of the steps, so
// it suffices to try b.step / gcd members of `a`, from the first possible one on.
bool meet(const Progression& a, const Progression& b) {
  const int64_t low = std::max(a.begin, b.begin), high = std::min(a.last(), b.last());
  if (low > high) return false;
  int64_t x = a.begin + ceil_div(low - a.begin, a.step) * a.step;
  for (int64_t tries = b.step / std::gcd(a.step, b.step); tries > 0 && x <= high; --tries, x += a.step)
    if ((x - b.begin) % b.step == 0) return true;
  return false;
}

// Returns whether all members lie within [0, size).
bool inside(Progression p, int64_t size) {
  if (p.count == 0) return p.begin >= 0 && p.begin <= size;
  return p.begin >= 0 && p.begin < size && p.count - 1 <= (size - 1 - p.begin) / p.step;
}

void check_bounds(const TensorSpec& spec, WeightPiece& p, const MatrixShape& m) {
  if (!p.target) fail_table(spec, "a piece has no target");
  if (p.rows < 0 || p.cols < 0) fail_table(spec, "a piece has negative rows or columns");
  if (p.row_step < 1 || p.col_step < 1) fail_table(spec, "a piece has a step below 1");
  if (p.cols == 0 && p.col_begin >= 0 && p.col_begin < m.cols) p.cols = ceil_div(m.cols - p.col_begin, p.col_step);
  if (!inside(rows_of(p), m.rows) || !inside(cols_of(p), m.cols))
    fail_table(spec, "a piece has ", p.rows, " rows from ", p.row_begin, " in steps of ", p.row_step, " and ", p.cols,
               " columns from ", p.col_begin, " in steps of ", p.col_step, ", outside [", m.rows, ", ", m.cols, "]");
  if (p.rows <= 1) p.row_step = 1;
  if (p.cols <= 1) p.col_step = 1;
}

}  // namespace

// The product cannot overflow where the shape equals that of a tensor in a file: the reader has checked it.
MatrixShape matrix_shape(const TensorSpec& spec) {
  const std::vector<int64_t>& shape = spec.shape;
  MatrixShape m{1, shape.empty() ? 1 : shape.back()};
  for (size_t i = 0; i + 1 < shape.size(); ++i) m.rows *= shape[i];
  if (spec.columns == 0) return m;
  if (m.rows * m.cols % spec.columns != 0) fail_table(spec, "shape ", shape, " has no rows of ", spec.columns, " columns");
  return {m.rows * m.cols / spec.columns, spec.columns};
}

// Pieces that lie inside the tensor and do not overlap cover it if they have as many elements as it has.
std::vector<WeightPiece> checked_pieces(const TensorSpec& spec) {
  const MatrixShape m = matrix_shape(spec);
  std::vector<WeightPiece> pieces = spec.pieces;
  std::vector<const WeightPiece*> order;
  for (WeightPiece& p : pieces) {
    check_bounds(spec, p, m);
    if (p.rows > 0 && p.cols > 0) order.push_back(&p);
  }
  std::sort(order.begin(), order.end(), [](const auto* a, const auto* b) { return a->row_begin < b->row_begin; });
  std::vector<const WeightPiece*>
      open;  // pieces that reach the first row of the current one: few, since experts follow one another
  int64_t covered = 0;
  for (const WeightPiece* p : order) {
    std::erase_if(open, [&](const WeightPiece* o) { return rows_of(*o).last() < p->row_begin; });
    for (const WeightPiece* o : open)
      if (meet(rows_of(*p), rows_of(*o)) && meet(cols_of(*p), cols_of(*o)))
        fail_table(spec, "pieces must cover each element once; those that begin at [", o->row_begin, ", ", o->col_begin,
                   "] and [", p->row_begin, ", ", p->col_begin, "] overlap");
    open.push_back(p);
    covered += p->rows * p->cols;
  }
  if (covered != m.rows * m.cols) fail_table(spec, "pieces cover ", covered, " of its ", m.rows * m.cols, " elements");
  return pieces;
}

WeightView target_view(const WeightPiece& p, DType dtype) {
  WeightView view{nullptr, p.dtype.value_or(dtype), p.rows, p.cols};
  if (p.transposed) std::swap(view.rows, view.cols);
  return view;
}

}  // namespace lynx_rt
