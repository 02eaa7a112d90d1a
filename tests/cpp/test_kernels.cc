// The tables of kernels of every instruction set of this CPU, function by function: products against float64 sums, row by row alone,
// and all else against the scalar kernels. Operands end at a page that cannot be read. test_arm.py runs this in an emulator.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <tuple>
#include <vector>

#include "backend/cpu/kernels/kernels.h"
#include "backend/cpu/kernels/quant.h"
#include "check.h"

using namespace lynx_rt;
using cpu::Kernels, cpu::Quant, cpu::QuantKernels;

namespace {

constexpr double kUnit = 0x1p-24;  // roundoff of float32; tests/tolerance.py has the bounds and their source

// Memory whose last byte is the last of a page, before one that cannot be read or written.
template <class T>
class Guarded {
 public:
  explicit Guarded(int64_t count) : bytes_(size_t(count) * sizeof(T)) {
    const size_t page = size_t(sysconf(_SC_PAGESIZE)), used = (bytes_ + page - 1) / page * page;
    mapped_ = used + page;
    base_ = static_cast<char*>(mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    CHECK(base_ != MAP_FAILED && mprotect(base_ + used, page, PROT_NONE) == 0);
    data_ = reinterpret_cast<T*>(base_ + used - bytes_);
  }
  explicit Guarded(const std::vector<T>& values) : Guarded(int64_t(values.size())) {
    if (bytes_) std::memcpy(data_, values.data(), bytes_);
  }
  ~Guarded() { munmap(base_, mapped_); }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;

  T* data() const { return data_; }
  T& operator[](int64_t i) const { return data_[i]; }
  bool operator==(const Guarded& other) const { return bytes_ == other.bytes_ && std::memcmp(data_, other.data_, bytes_) == 0; }

 private:
  size_t bytes_, mapped_;
  char* base_;
  T* data_;
};

std::mt19937 random_bits(1);

std::vector<float> normal(int64_t count, float scale = 1) {
  std::normal_distribution<float> distribution(0, scale);
  std::vector<float> out(static_cast<size_t>(count));
  for (float& v : out) v = distribution(random_bits);
  return out;
}

constexpr DType kDTypes[] = {DType::kF32, DType::kBF16, DType::kF16};

// Values as bytes of a dtype, and what they are after rounding to it.
std::vector<char> encode(std::vector<float>& values, DType dtype) {
  std::vector<char> out(values.size() * size_t(dtype_size(dtype)));
  for (size_t i = 0; i < values.size(); ++i) {
    const uint16_t bits = dtype == DType::kBF16 ? f32_to_bf16(values[i]) : f32_to_f16(values[i]);
    if (dtype != DType::kF32) values[i] = dtype == DType::kBF16 ? bf16_to_f32(bits) : f16_to_f32(bits);
    std::memcpy(out.data() + i * size_t(dtype_size(dtype)), dtype == DType::kF32 ? static_cast<const void*>(&values[i]) : &bits,
                size_t(dtype_size(dtype)));
  }
  return out;
}

// Weight rows, rows of x and columns: around tiles of 1 .. 16 rows and registers of 4 .. 32 columns, and more than a pass of rows.
constexpr int64_t kShapes[][3] = {{1, 1, 1},    {2, 2, 2},   {3, 3, 7},    {4, 4, 8},     {5, 5, 15},  {6, 7, 16},
                                  {7, 6, 17},   {8, 8, 31},  {9, 9, 33},   {13, 11, 40},  {15, 1, 64}, {16, 16, 65},
                                  {17, 2, 129}, {1, 17, 96}, {33, 19, 50}, {12, 40, 200}, {4, 0, 16}};

// Rows of float32 as gemm_f32 takes them: whole blocks of columns.
std::vector<char> pack(const Kernels& kernels, const std::vector<float>& values, int64_t m, int64_t k, DType w_dtype) {
  const int64_t columns = round_up(k, kernels.block_columns);
  std::vector<float> rows(static_cast<size_t>(m * columns));
  for (int64_t j = 0; j < m; ++j) {
    std::copy_n(values.begin() + j * k, k, rows.begin() + j * columns);
    if (w_dtype == DType::kBF16) kernels.split_pairs(rows.data() + j * columns, columns);
  }
  return encode(rows, DType::kF32);
}

void test_product(const Kernels& kernels, DType x_dtype, DType w_dtype) {
  const cpu::GemmFn gemm = x_dtype == DType::kF32 ? kernels.gemm_f32[int(w_dtype)] : kernels.gemm_bf16;
  for (const auto& [n, m, k] : kShapes) {
    std::vector<float> w_values = normal(n * k), x_values = normal(m * k);
    const Guarded<char> w(encode(w_values, w_dtype));
    const Guarded<char> x(x_dtype == DType::kF32 ? pack(kernels, x_values, m, k, w_dtype) : encode(x_values, x_dtype));
    const int64_t w_stride = k * dtype_size(w_dtype), stride = n + 3;
    const int64_t x_stride = x_dtype == DType::kF32 ? round_up(k, kernels.block_columns) * 4 : k * 2;
    const int64_t size = m ? (m - 1) * stride + n : 0;  // the last row is not followed by the space between rows
    const std::vector<float> before = normal(size);
    const Guarded<float> out(before), sum(before);
    gemm(w.data(), w_stride, n, x.data(), x_stride, m, k, out.data(), stride, false, nullptr);
    gemm(w.data(), w_stride, n, x.data(), x_stride, m, k, sum.data(), stride, true, nullptr);
    bool exact_enough = true, added = true, untouched = true, alone = true;
    for (int64_t j = 0; j < m; ++j) {
      const char* row = x.data() + j * x_stride;
      const Guarded<float> row_out(n);
      gemm(w.data(), w_stride, n, row, x_stride, 1, k, row_out.data(), n, false, nullptr);
      for (int64_t i = 0; i < stride && j * stride + i < size; ++i) {
        const int64_t at = j * stride + i;
        if (i >= n) {
          untouched &= out[at] == before[size_t(at)] && sum[at] == before[size_t(at)];
          continue;
        }
        double value = 0, magnitude = 0;
        for (int64_t p = 0; p < k; ++p) {
          const double product = double(w_values[size_t(i * k + p)]) * double(x_values[size_t(j * k + p)]);
          value += product;
          magnitude += std::abs(product);
        }
        exact_enough &= std::abs(double(out[at]) - value) <= 4 * double(k) * kUnit * magnitude + 1e-30;
        added &= sum[at] == before[size_t(at)] + out[at];
        float one;
        gemm(w.data() + i * w_stride, w_stride, 1, row, x_stride, 1, k, &one, 1, false, nullptr);
        alone &= one == out[at] && row_out[i] == out[at];
      }
    }
    CHECK(exact_enough);
    CHECK(added);
    CHECK(untouched);
    CHECK(alone);
  }
}

void test_weighted_sum(const Kernels& kernels) {
  for (DType dtype : kDTypes)
    for (const auto& [tokens, m, d] : {std::tuple{1, 1, 1}, {3, 2, 15}, {7, 3, 16}, {9, 5, 48}, {20, 4, 100}, {40, 13, 33}}) {
      const int64_t stride = d + 5, columns = round_up(d, kernels.block_columns);
      std::vector<float> values = normal((tokens - 1) * stride + d);
      const Guarded<char> v(encode(values, dtype));
      const std::vector<float> p_values = normal(m * tokens), before = normal(m * columns);
      const Guarded<float> p(p_values), acc(before);
      std::vector<const float*> p_rows;
      std::vector<float*> acc_rows;
      for (int64_t j = 0; j < m; ++j) p_rows.push_back(p.data() + j * tokens), acc_rows.push_back(acc.data() + j * columns);
      kernels.weighted_sum(v.data(), stride, dtype, tokens, p_rows.data(), m, d, acc_rows.data());
      bool exact_enough = true, alone = true;
      for (int64_t j = 0; j < m; ++j) {
        const Guarded<float> one(std::vector<float>(before.begin() + j * columns, before.begin() + (j + 1) * columns));
        float* one_row = one.data();
        kernels.weighted_sum(v.data(), stride, dtype, tokens, &p_rows[size_t(j)], 1, d, &one_row);
        for (int64_t i = 0; i < d; ++i) {
          // The even columns of a block come before the odd ones.
          const int64_t half = kernels.block_columns / 2, in_block = i % kernels.block_columns;
          const int64_t at = dtype == DType::kBF16 ? i - in_block + in_block % 2 * half + in_block / 2 : i;
          double value = double(before[size_t(j * columns + at)]), magnitude = std::abs(value);
          for (int64_t t = 0; t < tokens; ++t) {
            const double product = double(p_values[size_t(j * tokens + t)]) * double(values[size_t(t * stride + i)]);
            value += product;
            magnitude += std::abs(product);
          }
          exact_enough &= std::abs(double(acc[j * columns + at]) - value) <= 4 * double(tokens + 1) * kUnit * magnitude;
          alone &= one[at] == acc[j * columns + at];
        }
      }
      CHECK(exact_enough);
      CHECK(alone);
    }
}

bool same_or_nan(float a, float b) {
  return (std::isnan(a) && std::isnan(b)) || std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b);
}

void test_conversions(const Kernels& kernels) {
  for (DType dtype : {DType::kBF16, DType::kF16}) {
    std::vector<uint16_t> every(65536);
    for (size_t i = 0; i < every.size(); ++i) every[i] = uint16_t(i);
    std::vector<float> wide(every.size());
    kernels.to_f32(every.data(), dtype, int64_t(every.size()), wide.data());
    const auto widen = dtype == DType::kBF16 ? bf16_to_f32 : f16_to_f32;
    bool same = true;
    for (size_t i = 0; i < every.size(); ++i) same &= same_or_nan(wide[i], widen(uint16_t(i)));
    CHECK(same);
    for (int64_t n = 0; n < 70; ++n) {
      const Guarded<uint16_t> in(std::vector<uint16_t>(every.begin() + n * 900, every.begin() + n * 901));
      const Guarded<float> out(n);
      kernels.to_f32(in.data(), dtype, n, out.data());
      for (int64_t i = 0; i < n; ++i) same &= same_or_nan(out[i], widen(in[i]));
      // Numbers of every exponent, and halfway between two of 16 bits.
      const Guarded<float> x(n), rounded(n);
      const Guarded<uint16_t> narrow(n);
      for (int64_t i = 0; i < n; ++i) {
        const uint32_t bits = uint32_t(random_bits());
        x[i] = std::bit_cast<float>(i % 3 == 0   ? bits
                                    : i % 3 == 1 ? (bits & 0xffff0000) | 0x8000
                                                 : (bits & 0x8fffe000) + 0x38001000);
      }
      kernels.from_f32(x.data(), n, dtype, narrow.data());
      kernels.round_to(x.data(), n, dtype, rounded.data());
      const auto narrowed = dtype == DType::kBF16 ? f32_to_bf16 : f32_to_f16;
      for (int64_t i = 0; i < n; ++i)
        same &= same_or_nan(widen(narrow[i]), widen(narrowed(x[i]))) && same_or_nan(rounded[i], widen(narrow[i]));
    }
    CHECK(same);
  }
}

// Runs a function of both tables on the same values, which it changes in place.
template <class Function>
void expect_same(const Kernels& kernels, const std::vector<float>& values, Function function) {
  const Guarded<float> got(values), want(values);
  function(kernels, got.data());
  function(cpu::kScalarKernels, want.data());
  CHECK(got == want);
}

void test_elementwise(const Kernels& kernels) {
  for (const int64_t n : {1, 2, 7, 8, 15, 16, 17, 31, 32, 33, 64, 250}) {
    const std::vector<float> a_values = normal(n, 10), b_values = normal(n);
    const Guarded<float> a(a_values), b(b_values);
    const std::vector<float> c = normal(n);
    expect_same(kernels, c, [&](const Kernels& t, float* out) { t.silu_mul(a.data(), b.data(), n, out); });
    expect_same(kernels, c, [&](const Kernels& t, float* out) { t.clamped_swiglu(a.data(), b.data(), n, 1.702f, 7, out); });
    expect_same(kernels, c, [&](const Kernels& t, float* y) { t.axpy(0.3f, a.data(), n, y); });
    expect_same(kernels, normal(2 * n), [&](const Kernels& t, float* x) { t.rope(x, a.data(), b.data(), n); });
    expect_same(kernels, normal(2 * n), [&](const Kernels& t, float* x) { t.rope_interleaved(x, a.data(), b.data(), n); });
    expect_same(kernels, normal(n + 2, 5), [&](const Kernels& t, float* x) { t.exponentials(x, n, 0.7f, x + n); });
    const Guarded<float> part(normal(n + 2));
    expect_same(kernels, normal(n + 2), [&](const Kernels& t, float* state) { t.merge(part.data(), n, 0.7f, state); });
    const MassRule rule{40, 1.7, 0x1p45, 1 << 20};
    std::vector<uint64_t> mass(size_t(n) + 1, 7), want_mass(mass);
    std::vector<int16_t> bin(size_t(n) + 1, 7), want_bin(bin);
    CHECK_EQ(kernels.draw.masses(rule, a.data(), n, mass.data()),
             cpu::kScalarKernels.draw.masses(rule, a.data(), n, want_mass.data()));
    kernels.draw.bins(40, 30, 1000, a.data(), n, bin.data());
    cpu::kScalarKernels.draw.bins(40, 30, 1000, a.data(), n, want_bin.data());
    CHECK(mass == want_mass && bin == want_bin);
    const KeyRange range = kernels.draw.range(a.data(), n), want = cpu::kScalarKernels.draw.range(a.data(), n);
    CHECK(range.min == want.min && range.max == want.max);
  }
}

void test_norms(const Kernels& kernels) {
  for (const int64_t n : {1, 5, 16, 33, 256, 600})
    for (DType dtype : kDTypes) {
      std::vector<float> x_values = normal(n, 3), w_values = normal(n), bias_values = normal(n);
      const Guarded<float> x(x_values), out(n);
      const Guarded<char> w(encode(w_values, dtype)), bias(encode(bias_values, dtype));
      double sum = 0, squares = 0, around = 0;
      for (float v : x_values) sum += double(v), squares += double(v) * double(v);
      const double mean = sum / double(n);
      for (float v : x_values) around += (double(v) - mean) * (double(v) - mean);
      const double scale = 1 / std::sqrt(squares / double(n) + 1e-6), layer_scale = 1 / std::sqrt(around / double(n) + 1e-6);
      bool exact_enough = true;
      kernels.rmsnorm(x.data(), w.data(), dtype, n, 1e-6f, out.data());
      for (int64_t i = 0; i < n; ++i) {
        const double want = double(x[i]) * scale * double(w_values[size_t(i)]);
        exact_enough &= std::abs(double(out[i]) - want) <= (double(n) / 2 + 8) * kUnit * std::abs(want);
      }
      CHECK(exact_enough);
      if (n == 1) continue;  // the difference to the mean is zero
      kernels.layernorm(x.data(), w.data(), dtype, bias.data(), dtype, n, 1e-6f, out.data());
      for (int64_t i = 0; i < n; ++i) {
        const double factor = layer_scale * double(w_values[size_t(i)]), add = double(bias_values[size_t(i)]);
        const double size = (std::abs(double(x[i])) + 3 * std::abs(mean) + 9) * std::abs(factor) + std::abs(add);
        exact_enough &= std::abs(double(out[i]) - ((double(x[i]) - mean) * factor + add)) <= 2 * double(n + 8) * kUnit * size;
      }
      CHECK(exact_enough);
    }
}

void test_read_sum(const Kernels& kernels) {
  const Guarded<float> values(std::vector<float>(512, 0.25f));
  CHECK_EQ(kernels.read_sum(values.data(), 2048), 128.0);
}

// Bits, not values: kernels/quant.h defines them.
void test_quantised(const QuantKernels& kernels) {
  const QuantKernels& scalar = cpu::kScalarQuantKernels;
  for (int bits : {8, 4}) {
    for (const auto& [n, m, k] : kShapes) {
      const int64_t groups = Quant::groups(k), x_bytes = Quant::x_bytes(k), panels = ceil_div(n, Quant::kPanel);
      const int64_t panel_bytes = groups * Quant::group_bytes(bits);
      const std::vector<float> x_values = normal(m * k);
      std::vector<const float*> rows;
      for (int64_t j = 0; j < m; ++j) rows.push_back(x_values.data() + j * k);
      const Guarded<char> x(m * x_bytes), other_x(m * x_bytes);
      kernels.pack(rows.data(), m, 0, k, x.data(), x_bytes);
      scalar.pack(rows.data(), m, 0, k, other_x.data(), x_bytes);
      CHECK(x == other_x);
      for (int kind = 0; kind < 3; ++kind) {  // quantised values; any bytes; the largest sums
        const Guarded<char> w(panels * panel_bytes), other_w(panels * panel_bytes);
        for (int64_t g = 0; g < panels * groups; ++g) {
          const std::vector<float> values = normal(Quant::kPanel * Quant::kGroup);
          char* to = w.data() + g * Quant::group_bytes(bits);
          (bits == 8 ? kernels.quantize_int8 : kernels.quantize_int4)(values.data(), to);
          (bits == 8 ? scalar.quantize_int8 : scalar.quantize_int4)(values.data(), other_w.data() + g * Quant::group_bytes(bits));
          CHECK(std::memcmp(to, other_w.data() + g * Quant::group_bytes(bits), size_t(Quant::group_bytes(bits))) == 0);
          if (kind == 0) continue;
          for (int64_t b = Quant::kLine; b < Quant::group_bytes(bits); ++b)
            to[b] = char(kind == 1 ? int(random_bits() % 256) : b / 64 % 4 == 0 ? 255 : 0);
        }
        for (int64_t b = 0; kind == 2 && b < m * groups * Quant::kGroup; ++b) {
          char* row = x.data() + b / (groups * Quant::kGroup) * x_bytes;
          const int64_t column = b % (groups * Quant::kGroup), g = column / Quant::kGroup;
          int32_t* sum = const_cast<int32_t*>(Quant::x_sums(row, groups)) + g;
          if (column % Quant::kGroup == 0) *sum = 0;
          const int8_t q = column / 7 % 2 ? 127 : -127;
          row[column] = char(q);
          *sum += q;
        }
        const int64_t stride = n + 3, size = m ? (m - 1) * stride + n : 0;
        const std::vector<float> before = normal(size);
        for (bool accumulate : {false, true}) {
          const Guarded<float> out(before), want(before);
          (bits == 8 ? kernels.gemm_int8 : kernels.gemm_int4)(w.data(), panel_bytes / Quant::kPanel, n, x.data(), x_bytes, m, k,
                                                              out.data(), stride, accumulate, nullptr);
          (bits == 8 ? scalar.gemm_int8 : scalar.gemm_int4)(w.data(), panel_bytes / Quant::kPanel, n, x.data(), x_bytes, m, k,
                                                            want.data(), stride, accumulate, nullptr);
          CHECK(out == want);
        }
      }
    }
  }
}

}  // namespace

int main() {
  for (Isa isa : supported_isas()) {
    const int failures = check::failures;
    const Kernels& kernels = cpu::kernels_for(isa);
    CHECK(kernels.isa == isa);
    for (DType dtype : kDTypes) test_product(kernels, DType::kF32, dtype);
    if (kernels.gemm_bf16) test_product(kernels, DType::kBF16, DType::kBF16);
    test_weighted_sum(kernels);
    test_conversions(kernels);
    test_elementwise(kernels);
    test_norms(kernels);
    test_read_sum(kernels);
    test_quantised(cpu::quant_kernels_for(isa));
    std::cerr << isa_name(isa) << ": " << check::failures - failures << " failures\n";
  }
  return check::result("test_kernels");
}
