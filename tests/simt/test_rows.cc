// Compares embed, combine, norms, round_rows, round_heads, gather_rows, set_rows and router with float64, and tests their order guarantee bit by
// bit.
//   test_rows [n]   every n-th case; the options are those of SIMT_COPY and SIMT_SEED
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "backend/cuda/gemm/packed.h"
#include "backend/cuda/route/router.h"
#include "backend/cuda/rows/gather.h"
#include "backend/cuda/rows/norm.h"
#include "backend/cuda/rows/round.h"
#include "backend/cuda/rows/soft_cap.h"
#include "base/types.h"
#include "check.h"
#include "device_array.h"

using namespace lynx_rt;
using cuda::padded_columns;

namespace {

constexpr double kUnit = 1.0 / (1 << 24);  // the largest relative error of a float32 operation
constexpr uint16_t kPoison = 0x7fc1;
const std::vector<int> kHidden = {1, 5, 32, 64, 100, 2048, 2100, 4099, 8225};
const std::vector<int> kRows = {0, 1, 3, 17};

int every = 1, number = 0;
bool skipped() { return number++ % every != 0; }

std::mt19937 generator(30);
std::vector<float> random_floats(size_t count, float scale = 1) {
  std::normal_distribution<float> normal(0, scale);
  std::vector<float> values(count);
  for (float& v : values) v = normal(generator);
  return values;
}

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}
template <class T>
std::vector<T> row(const std::vector<T>& values, int t, size_t width) {
  return {values.begin() + t * width, values.begin() + (t + 1) * width};
}

// Returns the expected `rounded`: bf16 of the rows, with zeros after each.
std::vector<uint16_t> rounded_rows(const std::vector<float>& x, int num_rows, int num_columns, int stride) {
  const int64_t width = padded_columns(num_columns);
  std::vector<uint16_t> want(num_rows * width, 0);
  for (int t = 0; t < num_rows; ++t)
    for (int i = 0; i < num_columns; ++i) want[t * width + i] = f32_to_bf16(x[t * stride + i]);
  return want;
}

void test_embed(int num_rows, int hidden) {
  constexpr int kVocab = 37;
  // The position of element (n, k) of a matrix by packed.h, in units of uint16.
  const auto index = [hidden](int n, int k) {
    const int64_t block = int64_t(n / 16) * (padded_columns(hidden) / 32) + k / 32;
    const int c = k % 32, q = c / 8, s = c % 8 / 4, within = c % 4;
    const int lane = n % 8 * 4 + q, reg = within / 2 * 2 + n % 16 / 8;
    return (block * 2 + s) * 256 + lane * 8 + reg * 2 + within % 2;
  };
  std::vector<uint16_t> packed(cuda::packed_bytes(kVocab, hidden) / 2, kPoison);
  std::vector<float> table(kVocab * hidden);
  for (int n = 0; n < kVocab; ++n)
    for (int k = 0; k < hidden; ++k) {
      const uint16_t v = f32_to_bf16(float(generator() % 100000) - 50000);
      packed[index(n, k)] = v;
      table[n * hidden + k] = bf16_to_f32(v);
    }
  std::vector<int32_t> ids(num_rows);
  for (int32_t& id : ids) id = int32_t(generator() % kVocab);
  if (num_rows > 1) ids[0] = kVocab - 1, ids[1] = 0;
  std::vector<float> want;
  for (const int32_t id : ids) want.insert(want.end(), table.begin() + id * hidden, table.begin() + (id + 1) * hidden);

  const DeviceVector<uint16_t> device_table(packed);
  const DeviceVector<int32_t> device_ids(ids);
  const DeviceVector<float> out(size_t(num_rows) * hidden);
  cuda::embed(device_table.get(), device_ids.get(), num_rows, hidden, 1, out.get(), {});
  CHECK(same_bits(out.read(), want));
  for (float& v : want) v *= 12.3f;
  cuda::embed(device_table.get(), device_ids.get(), num_rows, hidden, 12.3f, out.get(), {});
  CHECK(same_bits(out.read(), want));
}

void test_gather_and_round(int num_rows, int hidden) {
  const int stride = hidden + int(generator() % 2) * 3, of = num_rows + 4;
  const std::vector<float> x = random_floats(size_t(of) * stride);
  const DeviceVector<float> device_x(x);
  const DeviceVector<uint16_t> rounded(std::vector<uint16_t>(num_rows * padded_columns(hidden), kPoison));
  cuda::round_rows(device_x.get(), stride, num_rows, hidden, rounded.get(), {});
  CHECK(same_bits(rounded.read(), rounded_rows(x, num_rows, hidden, stride)));

  // Heads whose columns overlap, touch, or leave gaps.
  for (const int head : {std::max(1, hidden - 3), hidden, hidden + 5}) {
    const int heads = 3, row_floats = 2 * head + hidden + 1, width = int(padded_columns(hidden));
    const std::vector<float> values = random_floats(size_t(num_rows) * row_floats);
    const DeviceVector<float> device_values(values);
    const DeviceVector<uint16_t> by_head(std::vector<uint16_t>(size_t(num_rows) * heads * width + 8, kPoison));
    cuda::round_heads(device_values.get(), row_floats, head, num_rows, heads, hidden, by_head.get(), {});
    std::vector<uint16_t> want_heads;
    for (int t = 0; t < num_rows; ++t)
      for (int a = 0; a < heads; ++a)
        for (int i = 0; i < width; ++i)
          want_heads.push_back(i < hidden ? f32_to_bf16(values[size_t(t) * row_floats + a * head + i]) : uint16_t{0});
    want_heads.resize(want_heads.size() + 8, kPoison);
    CHECK(same_bits(by_head.read(), want_heads));
  }

  std::vector<int32_t> rows(num_rows);
  std::vector<float> want;
  for (int32_t& r : rows) {
    r = int32_t(generator() % unsigned(of));
    const std::vector<float> it(x.begin() + r * hidden, x.begin() + (r + 1) * hidden);
    want.insert(want.end(), it.begin(), it.end());
  }
  const DeviceVector<int32_t> device_rows(rows);
  const DeviceVector<float> out(size_t(num_rows) * hidden);
  cuda::gather_rows(device_x.get(), device_rows.get(), num_rows, hidden, out.get(), {});
  CHECK(same_bits(out.read(), want));
}

void test_set_rows(int num_rows, int hidden) {
  const int stride = hidden + int(generator() % 3) * 4;
  const std::vector<float> from = random_floats(size_t(num_rows) * stride + 1),
                           before = random_floats(size_t(num_rows + 1) * hidden);
  const DeviceVector<float> device_from(from);
  for (const bool accumulate : {false, true})
    for (const int shift : {0, 1}) {  // whether `from` is aligned
      std::vector<float> want = before;
      for (int t = 0; t < num_rows; ++t)
        for (int i = 0; i < hidden; ++i) {
          const float value = from[size_t(t * stride + i + shift)];
          float& to = want[size_t(t * hidden + i)];
          to = accumulate ? to + value : value;
        }
      const DeviceVector<float> x(before);
      cuda::set_rows(device_from.get() + shift, stride, num_rows, hidden, accumulate, x.get(), {});
      CHECK(same_bits(x.read(), want));
    }
}

// Rows with experts to combine. The partial results of choices without an expert are NaN.
constexpr int kNumExperts = 3;

struct Experts {
  int top_k;
  std::vector<float> partial, weights;
  std::vector<int32_t> ids;
  DeviceVector<float> device_partial, device_weights;
  DeviceVector<int32_t> device_ids;

  Experts(int num_rows, int hidden, int k)
      : top_k(k), partial(random_floats(size_t(num_rows) * k * hidden)), weights(random_floats(num_rows * k)), ids(num_rows * k) {
    for (int pair = 0; pair < num_rows * k; ++pair) {
      ids[pair] = int32_t(generator() % (kNumExperts + 1)) - 1;
      if (ids[pair] < 0) std::fill_n(partial.begin() + int64_t(pair) * hidden, hidden, std::nanf(""));
      if (ids[pair] < 0) weights[pair] = std::nanf("");
    }
    device_partial = DeviceVector<float>(partial);
    device_weights = DeviceVector<float>(weights);
    device_ids = DeviceVector<int32_t>(ids);
  }
  ExpertSum arguments() const { return {device_partial.get(), device_ids.get(), device_weights.get(), top_k}; }
  ExpertSum unweighted() const { return {device_partial.get(), device_ids.get(), nullptr, top_k}; }
};

void test_combine(int num_rows, int hidden, int top_k) {
  const Experts experts(num_rows, hidden, top_k);
  const std::vector<float> before = random_floats(size_t(num_rows) * hidden);
  const bool weighted = top_k != 1;  // by one of 1: what a pair is scaled by before its products
  const DeviceVector<float> x(before);
  cuda::combine(weighted ? experts.arguments() : experts.unweighted(), num_rows, hidden, x.get(), {});
  const std::vector<float> got = x.read();
  int wrong = 0;
  for (int t = 0; t < num_rows; ++t)
    for (int i = 0; i < hidden; ++i) {
      const int64_t at = int64_t(t) * hidden + i;
      double sum = 0, size = std::abs(before[at]);
      for (int j = 0; j < top_k; ++j) {
        const int pair = t * top_k + j;
        if (experts.ids[pair] < 0) continue;
        const double product = double(weighted ? experts.weights[pair] : 1) * experts.partial[int64_t(pair) * hidden + i];
        sum += product;
        size += std::abs(product);
      }
      // There are k fused operations and one addition, of numbers that are at most `size` but for the roundings themselves.
      wrong += !(std::abs(got[at] - (before[at] + sum)) <= 1.01 * (top_k + 1) * kUnit * size);
    }
  CHECK_EQ(wrong, 0);
}

// Scales multiply the weights of their experts; a sum that replaces x is the one that is added to zeros.
void test_scaled_experts(int num_rows, int hidden, int top_k) {
  Experts experts(num_rows, hidden, top_k);
  const std::vector<float> scales = random_floats(kNumExperts);
  const DeviceVector<float> expert_scale(scales), weighted(size_t(num_rows) * hidden), scaled(size_t(num_rows) * hidden),
      replaced(std::vector<float>(size_t(num_rows) * hidden, std::nanf("")));
  ExpertSum sum = experts.arguments();
  const DeviceVector<float> scaled_weights(experts.weights.size());
  cuda::scale_weights(sum.weights, sum.ids, expert_scale.get(), int64_t(experts.weights.size()), scaled_weights.get(), {});
  sum.weights = scaled_weights.get();
  cuda::combine(sum, num_rows, hidden, scaled.get(), {});
  sum.accumulate = false;
  cuda::combine(sum, num_rows, hidden, replaced.get(), {});
  CHECK(same_bits(scaled.read(), replaced.read()));
  std::vector<float> weights = experts.weights;
  for (size_t pair = 0; pair < weights.size(); ++pair)
    if (experts.ids[pair] >= 0) weights[pair] *= scales[size_t(experts.ids[pair])];
  const DeviceVector<float> device_weights(weights);
  sum = experts.arguments();
  sum.weights = device_weights.get();
  cuda::combine(sum, num_rows, hidden, weighted.get(), {});
  CHECK(same_bits(scaled.read(), weighted.read()));
}

struct Norm {
  std::vector<float> x, out;
  std::vector<uint16_t> rounded;
};
enum class Output { kBoth, kInPlace, kRoundedOnly, kFloatOnly, kMisaligned };

// The bias of a norm. Any bias makes it layernorm().
struct Bias {
  bool layer = false;
  std::vector<float> values;  // empty: none
};

Norm run_norm(const std::vector<float>& x, const std::vector<float>& weight, float eps, int num_rows, int hidden,
              const ExpertSum& combine, Output output = Output::kBoth, const Bias& bias = {}) {
  const int shift = output == Output::kMisaligned;
  std::vector<float> shifted = x;
  if (shift) shifted.insert(shifted.begin(), 0.0f);
  const DeviceVector<float> device_x(shifted), device_weight(weight), out(x.size());
  const DeviceVector<uint16_t> rounded(std::vector<uint16_t>(num_rows * padded_columns(hidden), kPoison));
  float* to = output == Output::kInPlace ? device_x.get() : output == Output::kRoundedOnly ? nullptr : out.get();
  uint16_t* bf16 = output == Output::kFloatOnly ? nullptr : rounded.get();
  const DeviceVector<float> device_bias(bias.values);
  if (bias.layer)
    cuda::layernorm(device_x.get() + shift, combine, device_weight.get(), bias.values.empty() ? nullptr : device_bias.get(), eps,
                    num_rows, hidden, to, bf16, {});
  else
    cuda::rmsnorm(device_x.get() + shift, combine, device_weight.get(), eps, num_rows, hidden, to, bf16, {});
  Norm got{device_x.read(), out.read(), rounded.read()};
  if (shift) got.x.erase(got.x.begin());
  return got;
}

void test_norm(int num_rows, int hidden, const Bias& bias) {
  const float eps = 1e-2f;
  const std::vector<float> weight = random_floats(hidden);
  std::vector<float> x = random_floats(size_t(num_rows) * hidden, 3);
  for (size_t i = 0; bias.layer && i < x.size(); ++i) x[i] += 7;  // far from zero
  const auto run = [&](const std::vector<float>& rows, int count, const ExpertSum& combine = {}, Output output = Output::kBoth) {
    return run_norm(rows, weight, eps, count, hidden, combine, output, bias);
  };
  const Norm got = run(x, num_rows);
  // Squares are positive: the sum's relative error is at most its depth (a thread's values, 5 steps of a warp, 16 warps), of
  // which the root takes half; the division by H, eps, the root, its inverse and two products round once each. layernorm: the
  // mean is off by the same depth of the mean magnitude, which moves the deviations and with them the root; the rest as before.
  const double depth = 4.0 * std::ceil(padded_columns(hidden) / 4.0 / 512) + 5 + 16, bound = 1.01 * (depth / 2 + 6) * kUnit;
  int wrong = 0;
  for (int t = 0; t < num_rows; ++t) {
    double mean = 0, size = 0, squares = 0;
    for (int i = 0; i < hidden && bias.layer; ++i) mean += x[t * hidden + i], size += std::abs(x[t * hidden + i]);
    mean /= hidden, size /= hidden;
    for (int i = 0; i < hidden; ++i) squares += (x[t * hidden + i] - mean) * (x[t * hidden + i] - mean);
    const double root = std::sqrt(squares / hidden + eps), shift = 1.01 * (depth + 2) * kUnit * size;
    for (int i = 0; i < hidden; ++i) {
      const double deviation = (x[t * hidden + i] - mean) / root, add = bias.values.empty() ? 0 : bias.values[i];
      const double want = deviation * weight[i] + add;
      // A deviation moves by the shift of the mean; the root by as much in the mean of squares, in which shifts of the mean count
      // twice, each against a mean deviation of at most the root.
      double error = bound * std::abs(deviation * weight[i]);
      if (bias.layer)
        error += std::abs(weight[i]) * (shift / root) * (1 + std::abs(deviation)) +
                 2 * kUnit * (std::abs(want) + std::abs(weight[i] * deviation));
      wrong += !(std::abs(got.out[t * hidden + i] - want) <= error);
    }
  }
  CHECK_EQ(wrong, 0);
  CHECK(same_bits(got.x, x));
  CHECK(same_bits(got.rounded, rounded_rows(got.out, num_rows, hidden, hidden)));
  if (num_rows == 0) return;

  const Norm in_place = run(x, num_rows, {}, Output::kInPlace);
  CHECK(same_bits(in_place.x, got.out) && same_bits(in_place.rounded, got.rounded));
  CHECK(same_bits(run(x, num_rows, {}, Output::kRoundedOnly).rounded, got.rounded));
  CHECK(same_bits(run(x, num_rows, {}, Output::kFloatOnly).out, got.out));
  CHECK(same_bits(run(x, num_rows, {}, Output::kMisaligned).out, got.out));

  // A row has the same bits alone, and among others that have NaN and infinity.
  const int last = num_rows - 1;
  CHECK(same_bits(run(row(x, last, hidden), 1).out, row(got.out, last, hidden)));
  std::vector<float> bad = x;
  if (num_rows > 1) bad[hidden - 1] = std::nanf(""), bad[hidden] = std::numeric_limits<float>::infinity();
  const Norm beside = run(bad, num_rows);
  CHECK(same_bits(row(beside.out, last, hidden), row(got.out, last, hidden)));
  if (num_rows > 1) CHECK(std::isnan(beside.out[0]));
  for (int64_t i = hidden; i < padded_columns(hidden); ++i) CHECK_EQ(beside.rounded[i], 0);

  const Experts experts(num_rows, hidden, 1 + int(generator() % 9));
  const DeviceVector<float> combined(x);
  cuda::combine(experts.arguments(), num_rows, hidden, combined.get(), {});
  const Norm separate = run(combined.read(), num_rows), fused = run(x, num_rows, experts.arguments());
  CHECK(same_bits(fused.x, separate.x) && same_bits(fused.out, separate.out) && same_bits(fused.rounded, separate.rounded));
}

// add_rmsnorm() has the bits of rmsnorm() and an addition, with and without a sum that is added first.
void test_add_norm(int num_rows, int hidden) {
  const std::vector<float> weight = random_floats(hidden), before = random_floats(size_t(num_rows) * hidden),
                           y = random_floats(size_t(num_rows) * hidden, 3);
  const DeviceVector<float> device_weight(weight), scale(std::vector<float>{0.7f});
  const Experts experts(num_rows, hidden, 3);
  ExpertSum replaces = experts.arguments();
  replaces.accumulate = false;
  for (const ExpertSum& sum : {ExpertSum{}, experts.arguments(), replaces}) {
    const std::vector<float> normed = run_norm(y, weight, 1e-2f, num_rows, hidden, sum).out;
    for (const bool accumulate : {true, false}) {
      for (const float* by : {static_cast<const float*>(nullptr), static_cast<const float*>(scale.get())}) {
        const DeviceVector<float> device_y(y), x(before);
        cuda::add_rmsnorm(device_y.get(), sum, device_weight.get(), 1e-2f, num_rows, hidden, accumulate, by, x.get(), {});
        std::vector<float> want = normed;
        for (size_t i = 0; i < want.size(); ++i) want[i] = ((accumulate ? before[i] : 0.0f) + normed[i]) * (by ? 0.7f : 1.0f);
        CHECK(same_bits(x.read(), want));
      }
    }
  }
}

void test_soft_cap() {
  std::vector<float> values = random_floats(1000, 90);
  values.push_back(std::numeric_limits<float>::infinity());
  const DeviceVector<float> x(values);
  cuda::soft_cap(x.get(), int64_t(values.size()), 30.0f, {});
  const std::vector<float> got = x.read();
  for (size_t i = 0; i < values.size(); ++i) {
    const double want = 30 * std::tanh(double(values[i]) / 30);
    CHECK(std::abs(got[i] - want) <= 4 * kUnit * std::abs(want) + 1e-30);  // tanhf() within 2 units
  }
  cuda::soft_cap(x.get(), 0, 1.0f, {});
}

std::vector<float> run_router(const std::vector<float>& x, const void* weight, DType dtype, int num_rows, int num_experts,
                              int hidden, int shift = 0, const float* bias = nullptr) {
  std::vector<float> shifted(shift, 0.0f);
  shifted.insert(shifted.end(), x.begin(), x.end());
  const DeviceVector<float> device_x(shifted), scores(std::vector<float>(size_t(num_rows) * num_experts, std::nanf("")));
  cuda::router(device_x.get() + shift, {weight, dtype, num_experts, hidden}, bias, num_rows, scores.get(), {});
  return scores.read();
}

void test_router(int num_rows, int num_experts, int hidden, DType dtype) {
  std::vector<float> weight = random_floats(size_t(num_experts) * hidden);
  std::vector<uint16_t> halves;
  if (dtype == DType::kBF16)
    for (float& w : weight) {
      halves.push_back(f32_to_bf16(w));
      w = bf16_to_f32(halves.back());
    }
  const DeviceVector<float> device_floats(weight);
  const DeviceVector<uint16_t> device_halves(halves);
  const void* device_weight = dtype == DType::kBF16 ? static_cast<const void*>(device_halves.get()) : device_floats.get();
  const std::vector<float> x = random_floats(size_t(num_rows) * hidden);
  const auto run = [&](const std::vector<float>& rows, int count, int shift = 0) {
    return run_router(rows, device_weight, dtype, count, num_experts, hidden, shift);
  };

  const std::vector<float> got = run(x, num_rows);
  // Every partial sum is below sum |x w|: a lane's fused operations, 5 steps of a warp, 4 warps.
  const double depth = 4 * std::ceil(hidden / 512.0) + 5 + 4;
  int wrong = 0;
  for (int t = 0; t < num_rows; ++t)
    for (int e = 0; e < num_experts; ++e) {
      double want = 0, size = 0;
      for (int i = 0; i < hidden; ++i) {
        const double product = double(x[t * hidden + i]) * weight[e * hidden + i];
        want += product;
        size += std::abs(product);
      }
      wrong += !(std::abs(got[t * num_experts + e] - want) <= 1.01 * depth * kUnit * size);
    }
  CHECK_EQ(wrong, 0);
  if (num_rows == 0) return;

  const std::vector<float> bias = random_floats(num_experts);
  const DeviceVector<float> device_bias(bias);
  std::vector<float> biased = got;
  for (size_t i = 0; i < biased.size(); ++i) biased[i] += bias[i % num_experts];
  CHECK(same_bits(run_router(x, device_weight, dtype, num_rows, num_experts, hidden, 0, device_bias.get()), biased));

  CHECK(same_bits(run(x, num_rows, 1), got));
  const int last = num_rows - 1;
  CHECK(same_bits(run(row(x, last, hidden), 1), row(got, last, num_experts)));
  if (num_experts == 7 && hidden <= 100) {
    std::vector<float> more;  // the rows elsewhere in their tiles, and in a step of another size
    for (int i = 0; i < 66; ++i) more.insert(more.end(), x.begin(), x.begin() + hidden);
    more.insert(more.end(), x.begin(), x.end());
    const std::vector<float> moved = run(more, num_rows + 66);
    for (const int t : {0, 1, 7, 64, 65}) CHECK(same_bits(row(moved, t, num_experts), row(got, 0, num_experts)));
    CHECK(same_bits(row(moved, last + 66, num_experts), row(got, last, num_experts)));
  }

  std::vector<float> bad = x;
  bad[0] = std::nanf("");
  const std::vector<float> beside = run(bad, num_rows);
  CHECK(std::isnan(beside[0]) && std::isnan(beside[num_experts - 1]));
  CHECK(same_bits(std::vector<float>(beside.begin() + num_experts, beside.end()),
                  std::vector<float>(got.begin() + num_experts, got.end())));
}

void test_router_arguments() {
  const WeightView half{nullptr, DType::kF16, 4, 8};
  CHECK_THROWS(cuda::router(nullptr, half, nullptr, 0, nullptr, {}), ErrorCode::kUnsupported, "router", {"float16", "bfloat16"});
}

}  // namespace

int main(int argc, char** argv) {
  every = argc > 1 ? std::atoi(argv[1]) : 1;
  for (const int hidden : kHidden)
    for (const int num_rows : kRows) {
      if (hidden > 2000 && num_rows > 3) continue;
      if (!skipped()) test_embed(num_rows, hidden);
      if (!skipped()) test_gather_and_round(num_rows, hidden);
      if (!skipped()) test_set_rows(num_rows, hidden);
      for (const int top_k : {1, 8, 11})
        if (!skipped()) test_combine(num_rows, hidden, top_k);
      if (!skipped()) test_scaled_experts(num_rows, hidden, 5);
      if (!skipped()) test_add_norm(num_rows, hidden);
      if (!skipped()) test_norm(num_rows, hidden, {});
      if (!skipped()) test_norm(num_rows, hidden, {true, random_floats(hidden)});
      if (!skipped()) test_norm(num_rows, hidden, {true, {}});
      for (const int num_experts : {1, 7, 20})
        for (const DType dtype : {DType::kF32, DType::kBF16})
          if (hidden < 2100 && !skipped()) test_router(num_rows, num_experts, hidden, dtype);
    }
  test_soft_cap();
  test_router_arguments();
  return check::result("test_rows");
}
