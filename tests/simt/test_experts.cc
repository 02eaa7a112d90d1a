// Compares gate_up and down with float64 products of the rounded operands, and checks that a row's bits are the same in any batch, as
// test_gemm.cc does for linear.
//   test_experts [n]   every n-th case; the options are those of SIMT_COPY and SIMT_SEED
#include <cstdlib>
#include <iostream>

#include "gemm_reference.h"

using namespace gemm;

namespace {

int case_number = 0, every_nth = 1;
bool skipped() { return case_number++ % every_nth != 0; }

// Returns the product after scale and bias, before the activation. In float32 each step rounds by 2^-24.
Dot adjusted(Dot d, double scale, double bias) {
  d.value *= scale;
  d.error = d.error * std::abs(scale) + std::ldexp(std::abs(d.value), -24);
  d.value += bias;
  d.error += std::ldexp(std::abs(d.value), -24);
  return d;
}

// The error that silu(g) * u may have: |silu'| <= 1.1 and silu is below |g| carry the errors of the sums; fast_exp is off by 2
// ulp + 1e-7 |g|, which counts at most once in silu; 3 roundings of float32, one of bf16 (2^-8: 8 bits of significand), and what
// underflows is below 2^-126. The clamped form has alpha g in the exponent, one more rounding of it, and one of u + 1; no slope
// of it is steeper, either. That of gelu is at most 1.13, and its exponent has 7 roundings.
Dot swiglu(const FfnRule& ffn, Dot gate, Dot up) {
  double alpha = 1;
  if (ffn.activation == Activation::kClampedSwiglu) {
    alpha = ffn.alpha;
    gate.value = std::min(gate.value, double(ffn.limit));
    up.value = std::clamp(up.value, -double(ffn.limit), double(ffn.limit)) + 1;
    up.error += std::ldexp(std::abs(up.value) + up.error, -24);
  }
  const bool gelu = ffn.activation == Activation::kGeluTanh;
  if (gelu) alpha = std::sqrt(8 / std::numbers::pi) * (1 + 0.044715 * gate.value * gate.value);
  const double silu = gate.value / (1 + std::exp(-alpha * gate.value));
  const double silu_error = (gelu ? std::abs(silu) * std::ldexp(7 * std::abs(alpha * gate.value), -24) : 0) +
                            (gelu ? 1.13 : 1.1) * gate.error +
                            std::abs(silu) * (std::ldexp(5, -23) + 2e-7 * std::abs(alpha * gate.value)) + std::ldexp(1, -126);
  Dot d;
  d.value = silu * up.value;
  d.error = silu_error * (std::abs(up.value) + up.error) + std::abs(silu) * up.error;
  d.error += std::ldexp(std::abs(d.value) + d.error, -8) + std::ldexp(1, -126);
  return d;
}

// max(gate, 0)^2: one rounding of float32, one of bf16.
Dot relu2(const Dot& gate) {
  Dot d;
  const double g = std::max(gate.value, 0.0);
  d.value = g * g;
  d.error = gate.error * (2 * g + gate.error);
  d.error += std::ldexp(d.value + d.error, -24) + std::ldexp(d.value + d.error, -8) + std::ldexp(1, -126);
  return d;
}

// gelu(gate), by erf. Its slope is 1.13 at most; accurate_erf() is off by 2 ulp, its argument by 2 roundings, where |gate| * slope of erf is below 1;
// then 1 + erf, two products and one rounding to bf16.
Dot gelu(const Dot& gate) {
  Dot d;
  const double g = gate.value;
  d.value = g / 2 * std::erfc(-g / std::sqrt(2));
  d.error = 1.13 * gate.error + std::abs(g) / 2 * std::ldexp(8, -24) + std::ldexp(2 * std::abs(d.value), -24);
  d.error += std::ldexp(std::abs(d.value) + d.error, -8) + std::ldexp(1, -126);
  return d;
}

Dot alone(const FfnRule& ffn, const Dot& gate) {
  if (ffn.activation == Activation::kGelu) return gelu(gate);
  return ffn.activation == Activation::kGeluTanh ? swiglu(ffn, gate, {1, 0}) : relu2(gate);
}

void compare(const Experts& experts, const std::vector<float>& x, std::vector<int32_t> ids, int top_k, const Result& got) {
  const int num_rows = int(x.size()) / experts.hidden, hidden = experts.hidden, width = experts.width, stride = got.hidden_stride;
  if (ids.empty()) ids.assign(size_t(num_rows), 0);
  const Plan plan(ids, num_rows, experts.num_experts);
  const bool bias = experts.extras.bias;
  int wrong = 0;
  for (size_t place = 0; place < plan.pair_of_sorted.size(); ++place) {
    const int pair = plan.pair_of_sorted[place], e = plan.expert_of_place[place];
    const float* row = &x[size_t(pair / top_k) * hidden];
    const uint16_t* h = &got.hidden[place * stride];
    std::vector<float> values(static_cast<size_t>(width));
    for (int i = 0; i < width; ++i) {
      values[i] = bf16_to_f32(h[i]);
      const double scale = experts.extras.ffn.scale_input ? pair_weight(pair) : 1;
      const size_t at = size_t(e) * width + i;
      const Dot gate = dot(row, &experts.gate[e][size_t(i) * hidden], hidden),
                up = dot(row, &experts.up[e][size_t(i) * hidden], hidden);
      const Dot first = adjusted(gate, scale, bias ? experts.gate_bias[at] : 0);
      const Dot want = experts.gated() ? swiglu(experts.extras.ffn, first, adjusted(up, scale, bias ? experts.up_bias[at] : 0))
                                       : alone(experts.extras.ffn, first);
      if (!(std::abs(values[i] - want.value) <= want.error)) ++wrong;
    }
    for (int i = width; i < stride; ++i) wrong += h[i] != 0;
    for (int n = 0; n < hidden; ++n) {
      const Dot want = adjusted(dot(values.data(), &experts.down[e][size_t(n) * width], width), 1,
                                bias ? experts.down_bias[size_t(e) * hidden + n] : 0);
      if (!(std::abs(got.partial[size_t(pair) * hidden + n] - want.value) <= want.error)) ++wrong;
    }
  }
  // Rows of no pair must be unchanged.
  for (size_t i = plan.pair_of_sorted.size() * stride; i < got.hidden.size(); ++i) wrong += got.hidden[i] != 0xabcd;
  for (size_t i = 0; i < got.partial.size(); ++i)
    if (i / hidden >= ids.size() || ids[i / hidden] < 0) wrong += got.partial[i] != kUntouched;
  CHECK_EQ(wrong, 0);
  if (wrong)
    std::cerr << "  experts " << experts.num_experts << " H=" << hidden << " I=" << width << " T=" << num_rows << " k=" << top_k
              << "\n";
}

// kind 0: any experts; 1: all rows to one; 2: one gets none; 3: some pairs have no expert; 4: none has.
std::vector<int32_t> random_ids(int num_rows, int top_k, int num_experts, int kind) {
  std::vector<int32_t> ids(size_t(num_rows) * top_k), order(static_cast<size_t>(num_experts));
  for (int e = 0; e < num_experts; ++e) order[e] = e;
  for (int t = 0; t < num_rows; ++t) {
    std::shuffle(order.begin(), order.end(), generator);
    if (kind == 1) std::iter_swap(order.begin(), std::find(order.begin(), order.end(), num_experts - 1));
    if (kind == 2 && num_experts > top_k) std::iter_swap(order.end() - 1, std::find(order.begin(), order.end(), 0));
    for (int j = 0; j < top_k; ++j) {
      int32_t& id = ids[size_t(t) * top_k + j];
      id = kind == 4 || (kind == 3 && random_below(3) == 0) ? -1 : order[j];
    }
  }
  return ids;
}

void test_experts() {
  const int shapes[][3] = {{1, 1, 1},    {2, 31, 16},   {3, 32, 17}, {9, 33, 48}, {4, 64, 64},
                           {8, 100, 33}, {2, 290, 100}, {5, 48, 15}, {3, 17, 300}};
  const int rows[] = {1, 2, 5, 8, 9, 20, 32, 33, 50};
  const int sms[] = {1, 3, 200}, ks[] = {1, 2, 8};
  int number = 0;
  for (const auto& [num_experts, hidden, width] : shapes) {
    const Experts experts(num_experts, hidden, width);
    for (int kind = 0; kind < 5; ++kind) {
      ++number;
      if (skipped()) continue;
      const int num_rows = rows[number * 5 % 9], top_k = std::min(ks[(number + kind) % 3], num_experts);
      const std::vector<float> x = random_values(size_t(num_rows) * hidden);
      const std::vector<int32_t> ids = random_ids(num_rows, top_k, num_experts, kind);
      compare(experts, x, ids, top_k, run_experts(experts, x, ids, top_k, sms[number % 3]));
    }
    if (skipped()) continue;
    const std::vector<float> x =
        random_values(size_t(rows[number % 9]) * hidden);  // the dense MLP has the weights of the first expert
    compare(experts, x, {}, 1, run_experts(experts, x, {}, 1, 2));
  }
  // Biases, the clamped activation (limits that act), and weights that scale the input.
  for (int which = 1; which < 8; ++which) {
    FfnRule ffn;
    if (which & 2) ffn.activation = Activation::kClampedSwiglu, ffn.limit = which & 1 ? 0.75f : 1.5f;
    ffn.scale_input = which & 4;
    const auto& [num_experts, hidden, width] = shapes[which];
    const Experts experts(num_experts, hidden, width, {bool(which & 1), ffn});
    if (skipped()) continue;
    const int num_rows = rows[which], top_k = std::min(ks[which % 3], num_experts);
    const std::vector<float> x = random_values(size_t(num_rows) * hidden);
    const std::vector<int32_t> ids = random_ids(num_rows, top_k, num_experts, which % 4);
    compare(experts, x, ids, top_k, run_experts(experts, x, ids, top_k, sms[which % 3]));
    if (!ffn.scale_input) compare(experts, x, {}, 1, run_experts(experts, x, {}, 1, 2));
  }
  for (const int which : {2, 5, 3, 6, 1, 4, 7, 8}) {
    const FfnRule ffn{.activation = which == 3 || which == 6   ? Activation::kRelu2
                                    : which == 1 || which == 7 ? Activation::kGelu
                                                               : Activation::kGeluTanh};
    const auto& [num_experts, hidden, width] = shapes[which];
    Extras extras{which > 4, ffn};
    extras.no_up |= which == 4 || which == 8;
    const Experts experts(num_experts, hidden, width, extras);
    const std::vector<float> x = random_values(size_t(rows[which]) * hidden);
    const std::vector<int32_t> ids = random_ids(rows[which], 1, num_experts, 0);
    compare(experts, x, ids, 1, run_experts(experts, x, ids, 1, 3));
    compare(experts, x, {}, 1, run_experts(experts, x, {}, 1, 2));
  }
  const Experts experts(2, 33, 20);
  for (const int num_rows : {0, 129, 140, 513, 600}) {
    if (skipped()) continue;
    const std::vector<float> x = random_values(size_t(num_rows) * 33);
    const std::vector<int32_t> ids = random_ids(num_rows, 1, 2, num_rows == 513 ? 1 : 0);
    if (num_rows) compare(experts, x, ids, 1, run_experts(experts, x, ids, 1, 3));
    compare(experts, x, {}, 1, run_experts(experts, x, {}, 1, 3));
  }
}

// Quantised experts give the bits of decoded ones, those of a layer in different forms, too.
void test_quantized_experts() {
  const int shapes[][3] = {{1, 32, 32}, {3, 64, 96}, {5, 320, 32}, {2, 96, 160}};
  const int rows[] = {1, 9, 40, 130, 513, 0}, sms[] = {1, 200, 3};
  int number = 0;
  for (const auto& [num_experts, hidden, width] : shapes)
    for (int i = 0; i < 4; ++i) {
      const int num_rows = rows[(number + i) % 6], top_k = std::min(2, num_experts), kind = number++ % 5;
      if (skipped()) continue;
      Experts experts(num_experts, hidden, width, {i % 2 == 1, {.activation = i == 2 ? Activation::kRelu2 : Activation::kSilu}});
      // All in one form; else every third expert is bf16.
      for (int e = 0; e < num_experts; ++e)
        if (i == 0 || e % 3 != 2)
          experts.encode(e, kKinds[size_t(number + (i ? e : 0)) % kKinds.size()],
                         kKinds[size_t(number * 3 + (i ? e : 0)) % kKinds.size()]);
      const std::vector<float> x = random_values(size_t(num_rows) * hidden);
      const std::vector<int32_t> ids = random_ids(num_rows, top_k, num_experts, kind);
      const Result got = run_experts(experts, x, ids, top_k, sms[number % 3]);
      if (num_rows < 50) compare(experts, x, ids, top_k, got);
      const Result dense = run_experts(experts, x, {}, 1, 2);
      experts.decode();
      const auto same = [](const Result& a, const Result& b) {
        return same_bits(a.hidden, b.hidden) && same_bits(a.partial, b.partial);
      };
      CHECK(same(got, run_experts(experts, x, ids, top_k, 3)));
      CHECK(same(dense, run_experts(experts, x, {}, 1, 3)));
    }
}

// Compares the partial sums of the same rows in steps of 1 .. 530 rows, with other tiles and other positions in them.
void test_expert_bits() {
  const int hidden = 330, width = 20, num_experts = 3, most = 530;
  const Experts experts(num_experts, hidden, width);
  std::vector<float> x = random_values(size_t(most) * hidden);
  const std::vector<int32_t> ids = random_ids(most, 1, num_experts, 0);
  const auto run = [&](int first, int count, int num_sms, bool dense) {
    const std::vector<float> rows(x.begin() + ptrdiff_t(first) * hidden, x.begin() + ptrdiff_t(first + count) * hidden);
    const std::vector<int32_t> some(ids.begin() + first, ids.begin() + first + count);
    std::vector<float> partial = run_experts(experts, rows, dense ? std::vector<int32_t>{} : some, 1, num_sms).partial;
    partial.resize(size_t(count) * hidden);
    return partial;
  };
  const std::vector<float> all = run(0, most, 3, false), all_dense = run(0, 130, 3, true);
  const int cases[][3] = {{0, 1, 1}, {3, 5, 200}, {2, 12, 3}, {1, 33, 3}, {5, 130, 1}, {16, 514, 3}};
  for (const auto& [first, count, num_sms] : cases) {
    if (skipped()) continue;
    const std::vector<float> some = run(first, count, num_sms, false);
    CHECK(same_bits(some.data(), &all[size_t(first) * hidden], some.size()));
    if (first + count > 130) continue;
    const std::vector<float> dense = run(first, count, num_sms, true);
    CHECK(same_bits(dense.data(), &all_dense[size_t(first) * hidden], dense.size()));
    // The dense MLP is the first expert.
    for (int t = first; t < first + count; ++t)
      CHECK(ids[t] != 0 || same_bits(&all[size_t(t) * hidden], &all_dense[size_t(t) * hidden], size_t(hidden)));
  }
  // Non-finite rows must not affect other rows.
  x[5 * hidden + 7] = std::nanf(""), x[9 * hidden] = kInfinity;
  const std::vector<float> spoilt = run(0, 20, 3, false);
  for (int t = 0; t < 20; ++t) {
    const float* row = &spoilt[size_t(t) * hidden];
    CHECK_EQ(same_bits(row, &all[size_t(t) * hidden], size_t(hidden)), t != 5 && t != 9);
    CHECK((t != 5 && t != 9) || !std::isfinite(row[0]));
  }
}

// For gates far from zero silu is 0 or the gate itself. Zeros follow the width even where the row is not finite.
void test_extreme_gates() {
  Experts experts(1, 32, 2);
  const auto pack_first_column = [&](int part, float a, float b) {
    std::vector<float> matrix(64, 0.0f);
    matrix[0] = a, matrix[32] = b;
    pack_values(matrix, 2, 32, experts.gate_up_packed.get(), 2, part);
  };
  pack_first_column(0, 1, 1);
  pack_first_column(1, 1, 3);
  const float gates[] = {-1e4f, -200.0f, -88.5f, 0.0f, 100.0f, 1e4f, kInfinity};
  std::vector<float> x(7 * 32, 0.0f);
  for (int t = 0; t < 7; ++t) x[size_t(t) * 32] = bf16_to_f32(f32_to_bf16(gates[t]));
  const Result got = run_experts(experts, x, {}, 1, 1);
  for (int t = 0; t < 7; ++t)
    for (int i = 0; i < 2; ++i) {
      const float g = x[size_t(t) * 32], h = bf16_to_f32(got.hidden[size_t(t) * 32 + i]);
      if (g <= 0) CHECK(std::abs(h) < 1e-30f);
      if (g > 0) CHECK_EQ(h, bf16_to_f32(f32_to_bf16(g * g * float(1 + 2 * i))));
    }
  for (int t = 0; t < 7; ++t)
    for (int i = 2; i < 32; ++i) CHECK_EQ(got.hidden[size_t(t) * 32 + i], 0);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1) every_nth = std::atoi(argv[1]);
  test_experts();
  test_quantized_experts();
  test_expert_bits();
  test_extreme_gates();
  return check::result("test_experts");
}
