// pack, linear, gate_up and down against float64 products of the rounded operands, and against themselves: the bits of a row
// must not depend on how many others there are, on their values, or on the tiles.
//   test_gemm [n]   every n-th case; the options are those of SIMT_COPY and SIMT_SEED
#include "gemm_reference.h"

#include <bit>
#include <cstdlib>
#include <iostream>

using namespace gemm;

namespace {

int case_number = 0, every_nth = 1;
bool skipped() { return case_number++ % every_nth != 0; }

// --- pack

double half_value(uint16_t h) {
  const int exponent = h >> 10 & 31, fraction = h & 1023;
  const double magnitude = exponent == 31  ? (fraction ? std::nan("") : kInfinity)
                           : exponent == 0 ? std::ldexp(fraction, -24)
                                           : std::ldexp(fraction + 1024, exponent - 25);
  return h & 0x8000 ? -magnitude : magnitude;
}

// Where packed.h says that element (n, k) is, in 16-bit words.
size_t packed_index(int n, int k, int columns, int parts, int part) {
  const int column = k % 32, q = column / 8, step = column / 4 % 2, reg = column / 2 % 2 * 2 + n % 16 / 8, half = column % 2;
  const size_t block = size_t(n / 16) * size_t(padded_columns(columns) / 32) + size_t(k / 32);
  return (block * 2 + step) * parts * 256 + part * 256 + (n % 8 * 4 + q) * 8 + reg * 2 + half;
}

void test_pack(DType dtype, int rows, int columns, int parts, int chunk) {
  const size_t words = size_t(cuda::packed_bytes(rows, columns)) / 2 * parts;
  DeviceVector<uint16_t> packed(std::vector<uint16_t>(words + kGuard, 0xabcd));
  std::vector<uint16_t> want(words + kGuard, 0xabcd);
  std::vector<std::vector<float>> values;
  for (int part = 0; part < parts; ++part) {
    // Floats that bf16 rounds, among them ties and a carry; halves of all kinds but NaN, whose bits may differ.
    std::vector<float> matrix(size_t(rows) * columns);
    std::vector<uint16_t> bits(matrix.size());
    for (size_t i = 0; i < matrix.size(); ++i) {
      uint32_t word = uint32_t(generator());
      if (i % 3 == 0) word = (word & 0xffff0000u) | 0x8000u;
      if (i % 5 == 0) word |= 0xffffu;
      matrix[i] = std::bit_cast<float>(word);
      if (!(std::abs(matrix[i]) <= 1e38f)) matrix[i] = 1.0f / float(i + 3);
      bits[i] = uint16_t(word);
      if (dtype == DType::kBF16) bits[i] = f32_to_bf16(matrix[i]);
      if (dtype == DType::kF16 && std::isnan(half_value(bits[i]))) bits[i] &= 0xfc00;
      if (dtype == DType::kBF16) matrix[i] = bf16_to_f32(bits[i]);
      if (dtype == DType::kF16) matrix[i] = float(half_value(bits[i]));
    }
    // Not at the start of the memory, so that rows are aligned to their element only.
    const DeviceVector<float> floats(matrix.size() + 1);
    const DeviceVector<uint16_t> halves(bits.size() + 1);
    cuda::copy_async(floats.get() + 1, matrix.data(), matrix.size() * 4, {});
    cuda::copy_async(halves.get() + 1, bits.data(), bits.size() * 2, {});
    for (int begin = 0; begin < rows; begin += chunk) {
      const int count = std::min(chunk, rows - begin);
      const void* from = dtype == DType::kF32 ? static_cast<const void*>(floats.get() + 1 + size_t(begin) * columns)
                                              : halves.get() + 1 + size_t(begin) * columns;
      cuda::pack(from, dtype, begin, count, columns, {packed.get(), parts, part}, {});
    }
    for (int n = 0; n < padded_rows(rows); ++n)
      for (int k = 0; k < padded_columns(columns); ++k)
        want[packed_index(n, k, columns, parts, part)] =
            n < rows && k < columns ? f32_to_bf16(matrix[size_t(n) * columns + k]) : uint16_t{0};
    cuda::synchronize({});
  }
  const std::vector<uint16_t> got = packed.read();
  const int failures_before = check::failures;
  CHECK(got == want);
  if (check::failures != failures_before)
    std::cerr << "  pack " << dtype_name(dtype) << " [" << rows << ", " << columns << "], parts " << parts << "\n";
}

void test_packs() {
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16})
    for (const int rows : {1, 15, 16, 17, 48, 100})
      for (const int columns : {1, 31, 32, 33, 100}) {
        if (skipped()) continue;
        test_pack(dtype, rows, columns, 1 + random_below(2), random_below(2) ? 16 : 1024);
      }
  cuda::pack(nullptr, DType::kF32, 16, 0, 5, {nullptr, 1, 0}, {});  // an empty chunk

  // NaN and infinity stay what they are.
  std::vector<float> odd(32, 0.0f);
  odd[0] = std::nanf(""), odd[1] = kInfinity, odd[2] = -kInfinity;
  const DeviceVector<float> source(odd);
  const DeviceVector<uint16_t> packed(16 * 32);
  cuda::pack(source.get(), DType::kF32, 0, 1, 32, {packed.get(), 1, 0}, {});
  const std::vector<uint16_t> got = packed.read();
  CHECK(std::isnan(bf16_to_f32(got[packed_index(0, 0, 32, 1, 0)])));
  CHECK_EQ(bf16_to_f32(got[packed_index(0, 1, 32, 1, 0)]), kInfinity);
  CHECK_EQ(bf16_to_f32(got[packed_index(0, 2, 32, 1, 0)]), -kInfinity);
}

void test_to_float32() {
  std::vector<uint16_t> bits(65536);
  for (size_t i = 0; i < bits.size(); ++i) bits[i] = uint16_t(i);
  const DeviceVector<uint16_t> source(bits);
  const DeviceVector<float> out(bits.size());
  cuda::to_float32(source.get(), DType::kF16, int64_t(bits.size()), out.get(), {});
  std::vector<float> got = out.read();
  bool equal = true;
  for (size_t i = 0; i < bits.size(); ++i) {
    const float want = float(half_value(bits[i]));
    equal = equal && (std::isnan(want) ? std::isnan(got[i]) : same_bits(&got[i], &want, 1));
  }
  CHECK(equal);
  for (const int count : {0, 1, 255, 257}) {
    const std::vector<float> values = random_values(size_t(count));
    DeviceVector<float> floats(values);
    DeviceVector<uint16_t> rounded(to_bf16(values));
    DeviceVector<float> to(std::vector<float>(size_t(count) + kGuard, kUntouched));
    std::vector<float> want(size_t(count) + kGuard, kUntouched);
    std::copy(values.begin(), values.end(), want.begin());
    cuda::to_float32(rounded.get(), DType::kBF16, count, to.get(), {});
    CHECK(to.read() == want);
    to.write(std::vector<float>(size_t(count) + kGuard, kUntouched));
    cuda::to_float32(floats.get(), DType::kF32, count, to.get(), {});
    CHECK(to.read() == want);
  }
}

// --- linear

void test_linear(int columns, const std::vector<int>& part_rows, int num_rows, int num_sms) {
  const bool accumulate = random_below(2);
  const Linear linear(columns, part_rows, random_below(2));
  const std::vector<float> x = random_values(size_t(num_rows) * columns);
  std::vector<float> before(size_t(num_rows) * linear.out_stride + kGuard, kUntouched);
  if (accumulate) before = random_values(before.size());
  const std::vector<float> got = linear.run(x, num_sms, accumulate, before);

  std::vector<uint8_t> belongs(before.size());
  int wrong = 0;
  for (int t = 0; t < num_rows; ++t)
    for (size_t part = 0; part < part_rows.size(); ++part)
      for (int n = 0; n < part_rows[part]; ++n) {
        const size_t at = size_t(t) * linear.out_stride + linear.column_of(part) + n;
        Dot want = dot(&x[size_t(t) * columns], &linear.weights[part][size_t(n) * columns], columns);
        const double bias = linear.biases[part].empty() ? 0 : linear.biases[part][n], old = accumulate ? before[at] : 0;
        // Two more additions in float32, which round by 2^-24 of their results.
        want.error += std::ldexp(std::abs(want.value + bias) + std::abs(want.value + bias + old), -24);
        want.error *= 1 + 1e-6;  // the bounds above are of the first order
        want.value += bias + old;
        belongs[at] = 1;
        if (!(std::abs(got[at] - want.value) <= want.error)) ++wrong;
      }
  for (size_t i = 0; i < got.size(); ++i)
    if (!belongs[i] && !same_bits(&got[i], &before[i], 1)) ++wrong;
  CHECK_EQ(wrong, 0);
  if (wrong) std::cerr << "  linear K=" << columns << " N=" << part_rows[0] << " T=" << num_rows << " SMs " << num_sms << "\n";
}

void test_linears() {
  const std::vector<std::vector<int>> parts = {{1}, {15}, {16}, {17}, {48}, {33, 16, 1}, {0, 20}, {16, 17, 40, 5}};
  const int rows[] = {0, 1, 2, 7, 8, 9, 32, 33, 40, 47};
  const int sms[] = {1, 3, 200};
  int number = 0;
  for (const int columns : {1, 31, 32, 33, 64, 100, 256, 290, 1100})
    for (const auto& part_rows : parts) {
      ++number;
      if (skipped()) continue;
      test_linear(columns, part_rows, rows[number % 10], sms[number % 3]);
    }
  for (const int num_rows : {129, 150, 513, 530}) {
    if (skipped()) continue;
    test_linear(290, {17}, num_rows, 2);
  }
}

// The same rows among more and more others, in tiles of 8, 16, 32 and 64, by jobs of 16 and 32 rows.
void test_linear_bits() {
  const int columns = 330;
  const Linear linear(columns, {20}, true);
  const std::vector<float> x = random_values(size_t(530) * columns);
  const auto run = [&](int first, int count, int num_sms) {
    const std::vector<float> rows(x.begin() + ptrdiff_t(first) * columns, x.begin() + ptrdiff_t(first + count) * columns);
    return linear.run(rows, num_sms, false, std::vector<float>(size_t(count) * linear.out_stride));
  };
  const std::vector<float> all = run(0, 530, 3);
  const int cases[][3] = {{0, 1, 1}, {0, 1, 200}, {3, 5, 1}, {7, 9, 200}, {1, 33, 1}, {2, 34, 200}, {5, 130, 3}, {11, 514, 1}};
  for (const auto& [first, count, num_sms] : cases) {
    if (skipped()) continue;
    const std::vector<float> some = run(first, count, num_sms);
    CHECK(same_bits(some.data(), &all[size_t(first) * linear.out_stride], some.size()));
  }
  // A row that is not finite stays alone.
  std::vector<float> spoilt(x.begin(), x.begin() + 20 * columns);
  spoilt[5 * columns + 7] = std::nanf(""), spoilt[9 * columns] = kInfinity;
  const std::vector<float> got = linear.run(spoilt, 3, false, std::vector<float>(size_t(20) * linear.out_stride));
  for (int t = 0; t < 20; ++t) {
    const float* row = &got[size_t(t) * linear.out_stride];
    CHECK_EQ(same_bits(row, &all[size_t(t) * linear.out_stride], size_t(linear.out_stride)), t != 5 && t != 9);
    CHECK(t != 5 || std::isnan(row[3]));
    CHECK(t != 9 || !std::isfinite(row[3]));
  }
}

// --- experts

// The error that silu(g) * u may have: |silu'| <= 1.1 and silu is below |g| carry the errors of the sums; fast_exp is off by 2
// ulp + 1e-7 |g|, which counts at most once in silu; 3 roundings of float32, one of bf16 (2^-8: 8 bits of significand), and what
// underflows is below 2^-126.
Dot swiglu(const Dot& gate, const Dot& up) {
  const double silu = gate.value / (1 + std::exp(-gate.value));
  const double silu_error =
      1.1 * gate.error + std::abs(silu) * (std::ldexp(5, -23) + 1e-7 * std::abs(gate.value)) + std::ldexp(1, -126);
  Dot d;
  d.value = silu * up.value;
  d.error = silu_error * (std::abs(up.value) + up.error) + std::abs(silu) * up.error;
  d.error += std::ldexp(std::abs(d.value) + d.error, -8) + std::ldexp(1, -126);
  return d;
}

void compare(const Experts& experts, const std::vector<float>& x, std::vector<int32_t> ids, int top_k, const Result& got) {
  const int num_rows = int(x.size()) / experts.hidden, hidden = experts.hidden, width = experts.width, stride = got.hidden_stride;
  if (ids.empty()) ids.assign(size_t(num_rows), 0);
  const Plan plan(ids, num_rows, experts.num_experts);
  int wrong = 0;
  for (size_t place = 0; place < plan.pair_of_row.size(); ++place) {
    const int pair = plan.pair_of_row[place], e = plan.expert_of_place[place];
    const float* row = &x[size_t(pair / top_k) * hidden];
    const uint16_t* h = &got.hidden[place * stride];
    std::vector<float> values(static_cast<size_t>(width));
    for (int i = 0; i < width; ++i) {
      values[i] = bf16_to_f32(h[i]);
      const Dot want =
          swiglu(dot(row, &experts.gate[e][size_t(i) * hidden], hidden), dot(row, &experts.up[e][size_t(i) * hidden], hidden));
      if (!(std::abs(values[i] - want.value) <= want.error)) ++wrong;
    }
    for (int i = width; i < stride; ++i) wrong += h[i] != 0;
    for (int n = 0; n < hidden; ++n) {
      const Dot want = dot(values.data(), &experts.down[e][size_t(n) * width], width);
      if (!(std::abs(got.partial[size_t(pair) * hidden + n] - want.value) <= want.error)) ++wrong;
    }
  }
  // What belongs to no pair stays.
  for (size_t i = plan.pair_of_row.size() * stride; i < got.hidden.size(); ++i) wrong += got.hidden[i] != 0xabcd;
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
    const std::vector<float> x = random_values(size_t(rows[number % 9]) * hidden);  // dense, weights of the first expert
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

// The partial sums of the same rows in steps of 1 .. 530 rows: other tiles, other places in them.
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
  const int cases[][3] = {{0, 1, 1}, {3, 5, 200}, {1, 33, 3}, {5, 130, 1}, {16, 514, 3}};
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
  // Rows that are not finite stay alone.
  x[5 * hidden + 7] = std::nanf(""), x[9 * hidden] = kInfinity;
  const std::vector<float> spoilt = run(0, 20, 3, false);
  for (int t = 0; t < 20; ++t) {
    const float* row = &spoilt[size_t(t) * hidden];
    CHECK_EQ(same_bits(row, &all[size_t(t) * hidden], size_t(hidden)), t != 5 && t != 9);
    CHECK((t != 5 && t != 9) || !std::isfinite(row[0]));
  }
}

// Gates far from zero: 0 or the gate itself, and zeros behind a width even where the row is not finite.
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

// --- arguments

void test_arguments() {
  const auto code = ErrorCode::kInvalidArgument;
  cuda::LinearArgs linear = {};
  linear.num_rows = 1, linear.num_columns = 32, linear.num_parts = 1;
  linear.parts[0].rows = 16;
  const auto call_linear = [&](auto change, int num_sms = 1) {
    cuda::LinearArgs args = linear;
    change(args);
    cuda::linear(args, num_sms, {});
  };
  CHECK_THROWS(call_linear([](auto& a) { a.num_parts = 5; }), code, "linear", {"parts", "1..4", "5"});
  CHECK_THROWS(call_linear([](auto& a) { a.num_parts = 0; }), code, "linear", {"parts", "1..4", "0"});
  CHECK_THROWS(call_linear([](auto& a) { a.num_columns = 0; }), code, "linear", {"columns", "0"});
  CHECK_THROWS(call_linear([](auto& a) { a.num_rows = -1; }), code, "linear", {"rows", "-1"});
  CHECK_THROWS(call_linear([](auto& a) { a.parts[0].rows = -2; }), code, "linear", {"rows", "-2"});
  CHECK_THROWS(call_linear([](auto&) {}, 0), code, "linear", {"SMs", "0"});
  CHECK_THROWS(call_linear([](auto& a) { a.num_rows = 1 << 30, a.parts[0].rows = 1 << 30; }), code, "linear", {"jobs", "2^30"});
  CHECK_THROWS(call_linear([](auto& a) { a.num_rows = 1 << 20, a.num_columns = 1 << 20; }), code, "linear", {"64 GiB"});
  call_linear([](auto& a) { a.num_rows = 0; });
  call_linear([](auto& a) { a.parts[0].rows = 0; });

  cuda::GateUpArgs gate_up = {};
  gate_up.num_rows = 4;
  CHECK_THROWS(cuda::gate_up(gate_up, 1, {}), code, "gate_up", {"sizes", "0"});
  cuda::DownArgs down = {};
  down.num_rows = 4;
  CHECK_THROWS(cuda::down(down, 1, {}), code, "down", {"sizes", "0"});
  const int32_t* some_list = reinterpret_cast<const int32_t*>(256);  // never read
  gate_up.hidden_size = gate_up.width = down.hidden_size = down.width = 8;
  gate_up.pair_of_row = down.pair_of_row = some_list;
  CHECK_THROWS(cuda::gate_up(gate_up, 1, {}), code, "gate_up", {"experts per token", "0"});
  CHECK_THROWS(cuda::down(down, 1, {}), code, "down", {"experts per token", "0"});

  CHECK_THROWS(cuda::pack(nullptr, DType::kF32, 8, 1, 1, {}, {}), code, "pack", {"row_begin", "8"});
  CHECK_THROWS(cuda::pack(nullptr, DType::kF32, 0, 1, 1, {nullptr, 2, 2}, {}), code, "pack", {"part", "2"});
  CHECK_THROWS(cuda::to_float32(nullptr, DType::kF32, -1, nullptr, {}), code, "to_float32", {"count", "-1"});
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1) every_nth = std::atoi(argv[1]);
  test_packs();
  test_to_float32();
  test_linears();
  test_linear_bits();
  test_experts();
  test_expert_bits();
  test_extreme_gates();
  test_arguments();
  return check::result("test_gemm");
}
