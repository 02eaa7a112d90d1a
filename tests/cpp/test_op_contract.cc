// Values that ops pass on to each other cannot be used when they are out of date: either this does not compile, or the op throws.
#include <concepts>
#include <utility>
#include <vector>

#include "backend/device_array.h"
#include "check.h"

using namespace lynx_rt;

namespace {

// --- what does not compile

// Only ops write Activations, both forms at once: other code can only read the values, and no copy could keep an earlier shape.
static_assert(std::same_as<decltype(std::declval<Activations&>().f32()), const float*>);
static_assert(!std::copy_constructible<Activations> && !std::is_copy_assignable_v<Activations>);
// A sum is used once.
static_assert(!std::copy_constructible<PendingSum> && !std::is_copy_assignable_v<PendingSum>);

template <class In>
concept ProductTakes =
    requires(Backend& b, const In& x, float* out) { b.linear(x, std::span<const LinearPart>(), false, out, int64_t{1}); };
static_assert(ProductTakes<Activations> && !ProductTakes<float*>);

template <class Out>
concept NormWrites = requires(Backend& b, Out& out) { b.rmsnorm(nullptr, WeightView(), 0.f, int64_t{1}, out); };
static_assert(NormWrites<Activations> && !NormWrites<float*>);

// --- what is refused

constexpr int64_t kRows = 3, kHidden = 8, kWidth = 4;
constexpr int kExperts = 2;

struct Layer {
  std::unique_ptr<Backend> backend = make_backend({"cpu", DType::kF32, 1, ""});
  std::vector<float> matrix = std::vector<float>(kHidden * kHidden, 0.25f), x = std::vector<float>(kRows * kHidden, 1.f),
                     out = std::vector<float>(kRows * kHidden), ones = std::vector<float>(kHidden, 1.f);
  WeightView norm{ones.data(), DType::kF32, 1, kHidden};
  Activations rows{*backend, kRows, kHidden, "test"};
  std::vector<ExpertWeights> experts{kExperts};
  ExpertTable table;
  std::vector<int32_t> ids{0, 1, 0}, active{0, 1}, offsets{0, 2, 3}, sorted_of_pair{0, 2, 1}, pair_of_sorted{0, 2, 1};
  std::vector<float> weights{1.f, 2.f, 0.5f};

  Layer() {
    for (ExpertWeights& e : experts) {
      e.gate = e.up = {matrix.data(), DType::kF32, kWidth, kHidden};
      e.down = {matrix.data(), DType::kF32, kHidden, kWidth};
    }
    table = backend->expert_table(experts);
    backend->rmsnorm(x.data(), norm, 0, kRows, rows);
  }
  PendingSum expert_ffn() {
    return backend->expert_ffn(rows, table, RouterRule{kExperts, 1, true}, {},
                               {ids.data(), weights.data(), active.data(), kExperts},
                               {offsets.data(), sorted_of_pair.data(), pair_of_sorted.data()}, x.data());
  }
};

void test_a_sum_is_taken_before_anything_else() {
  Layer l;
  PendingSum sum = l.expert_ffn();
  const LinearPart part{{l.matrix.data(), DType::kF32, kHidden, kHidden}, {}, 0};
  const int32_t row = 0;
  float* out = l.out.data();
  CHECK_THROWS(l.backend->linear(l.rows, {&part, 1}, false, out, kHidden), ErrorCode::kInternal, "linear", {"expert_ffn"});
  CHECK_THROWS(l.backend->mlp(l.rows, l.experts[0], {}, out), ErrorCode::kInternal, "mlp", {"expert_ffn"});
  CHECK_THROWS(l.backend->router(l.rows.f32(), part.weight, {}, kRows, out), ErrorCode::kInternal, "router", {"expert_ffn"});
  CHECK_THROWS(l.backend->gather_rows(l.x.data(), {&row, 1}, kHidden, out), ErrorCode::kInternal, "gather_rows", {"expert_ffn"});
  CHECK_THROWS(l.backend->read(out, l.x.data(), 4), ErrorCode::kInternal, "read", {"expert_ffn"});
  CHECK_THROWS(l.backend->write(l.x.data(), out, 4), ErrorCode::kInternal, "write", {"expert_ffn"});
  CHECK_THROWS(l.backend->end_step({}), ErrorCode::kInternal, "end_step", {"expert_ffn"});
  CHECK_THROWS(l.expert_ffn(), ErrorCode::kInternal, "expert_ffn", {"expert_ffn"});
  CHECK_THROWS(l.backend->rmsnorm(l.x.data(), l.norm, 0, kRows, l.rows), ErrorCode::kInternal, "rmsnorm", {"expert_ffn"});
  l.backend->combine(std::move(sum));
  l.backend->linear(l.rows, {&part, 1}, false, out, kHidden);
}

void test_a_sum_goes_to_its_own_rows_once() {
  Layer l;
  PendingSum sum = l.expert_ffn();
  CHECK_THROWS(l.backend->rmsnorm(l.out.data(), l.norm, 0, kRows, l.rows, std::move(sum)), ErrorCode::kInternal, "rmsnorm",
               {"other rows"});
  CHECK_THROWS(l.backend->rmsnorm(l.x.data(), l.norm, 0, kRows, l.rows), ErrorCode::kInternal, "rmsnorm", {"expert_ffn"});

  l.backend->begin_step({});  // the step failed
  sum = l.expert_ffn();
  PendingSum taken = std::move(sum);
  l.backend->rmsnorm(l.x.data(), l.norm, 0, kRows, l.rows, std::move(taken));
  l.backend->rmsnorm(l.x.data(), l.norm, 0, kRows, l.rows, std::move(taken));  // the moved-from sum is empty
  l.backend->combine({});

  sum = l.expert_ffn();
  CHECK_THROWS(l.backend->add_rmsnorm(l.out.data(), l.norm, 0, kRows, true, l.x.data(), {}, std::move(sum)), ErrorCode::kInternal,
               "add_rmsnorm", {"other rows"});
  l.backend->begin_step({});
  sum = l.expert_ffn();
  l.backend->add_rmsnorm(l.x.data(), l.norm, 0, kRows, true, l.out.data(), {}, std::move(sum));
  l.backend->combine({});

  sum = l.expert_ffn();
  l.backend->begin_step({});
  CHECK_THROWS(l.backend->combine(std::move(sum)), ErrorCode::kInternal, "combine", {"earlier step"});
}

void test_a_step_ends_without_a_sum() {
  Layer l;
  BatchView batch;
  batch.num_rows = kRows;
  PendingSum lost;
  CHECK_THROWS(l.backend->run({"topk"}, batch, [&](const BatchView&) { lost = l.expert_ffn(); }), ErrorCode::kInternal, "run",
               {"expert_ffn"});
}

void test_activations_have_the_shape_of_the_last_write() {
  Layer l;
  std::vector<float> few(kRows * 2, 1.f);
  const WeightView narrow{l.ones.data(), DType::kF32, 1, 2};
  const LinearPart part{{l.matrix.data(), DType::kF32, kHidden, kHidden}, {}, 0};
  l.backend->rmsnorm(few.data(), narrow, 0, kRows, l.rows);
  CHECK_EQ(l.rows.num_columns(), 2);
  CHECK_THROWS(l.backend->linear(l.rows, {&part, 1}, false, l.out.data(), kHidden), ErrorCode::kInvalidArgument, "linear",
               {"expected 8 columns, got 2"});
  CHECK_THROWS(l.backend->rmsnorm(l.x.data(), l.norm, 0, kRows + 1, l.rows), ErrorCode::kInvalidArgument, "rmsnorm",
               {"at most [3, 8]", "[4, 8]"});
  Activations borrowed(l.x.data(), kRows, kHidden);  // no op may write the caller's values
  CHECK_THROWS(l.backend->rmsnorm(l.x.data(), l.norm, 0, kRows, borrowed), ErrorCode::kInvalidArgument, "rmsnorm",
               {"at most [0, 0]"});
}

void test_arguments_of_gemma() {
  Layer l;
  const WeightView two{l.ones.data(), DType::kF32, 1, 2};
  CHECK_THROWS(l.backend->add_rmsnorm(l.x.data(), l.norm, 0, kRows, true, l.out.data(), two), ErrorCode::kInvalidArgument,
               "add_rmsnorm", {"scale", "[1, 1]", "[1, 2]"});
  l.backend->rmsnorm(l.x.data(), l.norm, 0, kRows, l.rows);
  const WeightView matrix{l.matrix.data(), DType::kF32, kHidden, kHidden};
  ExpertWeights weights;
  weights.gate = weights.up = weights.down = matrix;
  CHECK_THROWS(l.backend->mlp(l.rows, weights, {}, l.out.data(), Activation::kClampedSwiglu), ErrorCode::kInvalidArgument, "mlp",
               {"activation"});
  CHECK_THROWS(l.backend->logits(l.rows, matrix, {}, 1, l.out.data(), -1), ErrorCode::kInvalidArgument, "logits", {"soft_cap"});
}

void test_a_table_is_checked_once() {
  Layer l;
  l.experts[1].gate.format = l.experts[1].up.format = QuantFormat::kPacked;
  CHECK_THROWS(l.backend->expert_table(l.experts), ErrorCode::kUnsupported, "experts", {"expert 1 is packed"});
  l.experts[1] = l.experts[0];
  l.experts[1].down_bias = l.norm;
  CHECK_THROWS(l.backend->expert_table(l.experts), ErrorCode::kInvalidArgument, "experts", {"all biases or none"});
  l.experts[1] = l.experts[0];
  l.experts[1].up.rows = 3;
  CHECK_THROWS(l.backend->expert_table(l.experts), ErrorCode::kInvalidArgument, "experts", {"up: expected [4, 8], got [3, 8]"});
  CHECK_THROWS(l.backend->expert_table({}), ErrorCode::kInvalidArgument, "experts", {"at least one"});
}

}  // namespace

int main() {
  test_a_sum_is_taken_before_anything_else();
  test_a_sum_goes_to_its_own_rows_once();
  test_a_step_ends_without_a_sum();
  test_activations_have_the_shape_of_the_last_write();
  test_arguments_of_gemma();
  test_a_table_is_checked_once();
  return check::result("test_op_contract");
}
