// Compares qkv_post() and mla_post() with float64 and, without a norm or with one before the rotation, with the CPU's bits.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "backend/cuda/attention/attention.h"
#include "check.h"
#include "device_array.h"

using namespace lynx_rt;

namespace {

constexpr double kUnit = 1.0 / (1 << 24);  // the largest relative error of a float32 operation

// A value and the first-order error bound of float32 arithmetic for it.
struct Number {
  double value = 0, error = 0;
  Number(double v = 0, double e = 0) : value(v), error(e) {}
  Number rounded() const { return {value, error + kUnit * std::abs(value)}; }
};
Number operator*(const Number& a, const Number& b) {
  return Number(a.value * b.value, std::abs(a.value) * b.error + std::abs(b.value) * a.error).rounded();
}
Number operator+(const Number& a, const Number& b) { return Number(a.value + b.value, a.error + b.error).rounded(); }
Number operator-(const Number& a, const Number& b) { return Number(a.value - b.value, a.error + b.error).rounded(); }

// Each function exists twice: for Number, and for float in the CPU's order (16 sums, folded in halves).
Number inverse_rms(const std::vector<Number>& x, double eps) {
  double squares = 0, error = 0;
  for (const Number& v : x) squares += v.value * v.value, error += 2 * std::abs(v.value) * v.error;
  error += double(x.size()) * kUnit * squares;  // holds for every order
  const double mean = squares / double(x.size()) + eps, inverse = 1 / std::sqrt(mean);
  return {inverse, inverse * (error / double(x.size()) / mean / 2 + 5 * kUnit)};
}
float inverse_rms(const std::vector<float>& x, double eps) {
  float sums[16] = {};
  for (size_t i = 0; i < x.size(); ++i) sums[i % 16] = std::fma(x[i], x[i], sums[i % 16]);
  for (int n = 8; n > 0; n /= 2)
    for (int i = 0; i < n; ++i) sums[i] += sums[i + n];
  return 1.0f / std::sqrt(sums[0] / float(x.size()) + float(eps));
}
Number clipped(const Number& v, double to) { return {std::clamp(v.value, -to, to), v.error}; }
float clipped(float v, double to) { return std::clamp(v, -float(to), float(to)); }

template <class T>
std::vector<T> scaled(std::vector<T> x, const T& by, const float* weights) {
  for (size_t i = 0; i < x.size(); ++i) x[i] = weights ? x[i] * by * T(weights[i]) : x[i] * by;
  return x;
}

template <class T>
std::vector<T> rotated(const std::vector<T>& x, int dim, bool interleaved, const float* cos, const float* sin) {
  std::vector<T> y = x;
  for (int i = 0; i < dim / 2; ++i) {
    const int a = interleaved ? 2 * i : i, b = interleaved ? 2 * i + 1 : i + dim / 2;
    y[size_t(a)] = x[size_t(a)] * T(cos[i]) - x[size_t(b)] * T(sin[i]);
    y[size_t(b)] = x[size_t(b)] * T(cos[i]) + x[size_t(a)] * T(sin[i]);
  }
  return y;
}

std::mt19937 generator(5);
std::vector<float> random_floats(size_t count, float scale = 2) {
  std::normal_distribution<float> normal(0, scale);
  std::vector<float> v(count);
  for (float& x : v) x = normal(generator);
  return v;
}

struct Post {
  int num_heads, num_kv_heads, head_dim, block_size;
  QkNorm norm;
  int rope_dim;
  bool interleaved = false;
  float clip = 0, temperature_floor = 0;
  bool v_norm = false, v_from_k = false;
};

const std::vector<int32_t> kPositions = {8, -1, 0, 3, 3};
constexpr int kMaxPositions = 9, kBlocks = 5;
constexpr float kEps = 1e-5f, kTemperatureScale = 0.3f;

// Returns the expected heads of a row: A of q, G of k, G of v.
template <class T>
std::vector<std::vector<T>> reference(const Post& c, const float* row, const float* q_norm, const float* k_norm, const float* cos,
                                      const float* sin, int position) {
  const int d = c.head_dim, a = c.num_heads, g = c.num_kv_heads;
  const auto columns = [&](int from, int count) { return std::vector<T>(row + from, row + from + count); };
  std::vector<std::vector<T>> heads;
  for (int h = 0; h < a + 2 * g; ++h) {
    const bool is_q = h < a, is_v = h >= a + g;
    std::vector<T> x = columns((is_v && c.v_from_k ? h - g : h) * d, d);
    if (is_v && c.v_norm) x = scaled(x, inverse_rms(x, kEps), nullptr);
    const float* weights = is_q ? q_norm : k_norm;
    if (!is_v && c.norm == QkNorm::kHead) x = scaled(x, inverse_rms(x, kEps), weights);
    if (!is_v && c.norm == QkNorm::kWidth)
      x = scaled(x, inverse_rms(is_q ? columns(0, a * d) : columns(a * d, g * d), kEps), weights + (is_q ? h : h - a) * d);
    for (T& v : x)
      if (c.clip > 0) v = clipped(v, c.clip);
    if (!is_v) x = rotated(x, c.rope_dim, c.interleaved, cos, sin);
    if (!is_v && c.norm == QkNorm::kHeadAfterRope) x = scaled(x, inverse_rms(x, kEps), weights);
    if (!is_v && c.norm == QkNorm::kUnitAfterRope) x = scaled(x, inverse_rms(x, kEps), nullptr);
    if (is_q && c.temperature_floor > 0) {
      const double grown = std::log1p(std::floor((position + 1) / double(c.temperature_floor)));
      T factor{};
      if constexpr (std::is_same_v<T, float>)
        factor = 1 + kTemperatureScale * float(grown);
      else
        factor = Number(1) + Number(kTemperatureScale) * Number(grown, 4 * kUnit * grown);
      for (T& v : x) v = v * factor;
    }
    heads.push_back(x);
  }
  return heads;
}

void test_qkv_post(const Post& c) {
  const int d = c.head_dim, half = c.rope_dim / 2, heads = c.num_heads + 2 * c.num_kv_heads;
  const std::vector<int64_t> slots = {int64_t(c.block_size) * kBlocks - 1, -1, 0, c.block_size, -1};
  const int rows = int(kPositions.size());
  std::vector<float> qkv = random_floats(size_t(rows) * heads * d), q_norm = random_floats(size_t(c.num_heads) * d),
                     k_norm = random_floats(size_t(c.num_kv_heads) * d);
  const std::vector<float> cos = random_floats(size_t(kMaxPositions) * half), sin = random_floats(cos.size());
  std::fill_n(&qkv[size_t(2) * heads * d], d, 0.0f);  // a head of zeros, for whose norm eps decides
  const std::vector<uint16_t> untouched(size_t(kBlocks) * c.num_kv_heads * c.block_size * d, 0x7777);
  const DeviceVector<float> x(qkv), qn(q_norm), kn(k_norm), table_cos(cos), table_sin(sin), scales(size_t(2) * rows);
  std::vector<int32_t> rope_rows = kPositions;  // of other rows of the table than their positions, the first excepted
  std::rotate(rope_rows.begin() + 1, rope_rows.begin() + 2, rope_rows.end());
  const DeviceVector<int32_t> device_positions(kPositions), device_rope_rows(rope_rows);
  const DeviceVector<int64_t> device_slots(slots);
  const DeviceVector<uint16_t> k(untouched), v(untouched);
  const KvCacheView cache{k.get(), v.get(), DType::kBF16, kBlocks, c.block_size, c.num_kv_heads, d};
  QkvPostArgs args = {};
  args.qkv = x.get(), args.num_heads = c.num_heads, args.norm = c.norm, args.eps = kEps, args.clip = c.clip;
  if (c.norm != QkNorm::kNone && c.norm != QkNorm::kUnitAfterRope)
    args.q_norm = {qn.get(), DType::kF32, 1, d}, args.k_norm = {kn.get(), DType::kF32, 1, d};
  args.rope = {table_cos.get(), table_sin.get(), c.rope_dim, c.interleaved};
  args.v_norm = c.v_norm, args.v_from_k = c.v_from_k;
  args.temperature_floor = c.temperature_floor, args.temperature_scale = kTemperatureScale;
  cuda::qkv_post(args, rows, device_positions.get(), device_rope_rows.get(), device_slots.get(), cache, scales.get(), {});

  const std::vector<float> got = x.read();
  const std::vector<uint16_t> got_k = k.read(), got_v = v.read();
  std::vector<uint16_t> left_k = got_k, left_v = got_v;  // for the places that must not be written
  const bool has_bits = (c.norm == QkNorm::kNone || c.norm == QkNorm::kHead) && c.temperature_floor == 0;
  int wrong = 0;
  for (int t = 0; t < rows; ++t) {
    const int position = std::max(kPositions[t], 0), rope_row = std::max(rope_rows[t], 0);
    const float *row = &qkv[size_t(t) * heads * d], *row_cos = cos.data() + rope_row * half,
                *row_sin = sin.data() + rope_row * half;
    const auto want = reference<Number>(c, row, q_norm.data(), k_norm.data(), row_cos, row_sin, position);
    const auto bits = reference<float>(c, row, q_norm.data(), k_norm.data(), row_cos, row_sin, position);
    for (int h = 0; h < heads; ++h) {
      const bool is_q = h < c.num_heads, is_v = h >= c.num_heads + c.num_kv_heads;
      const int g = is_v ? h - c.num_heads - c.num_kv_heads : h - c.num_heads;
      if (!is_q && slots[t] < 0) continue;
      const int64_t block = is_q ? 0 : slots[t] / c.block_size, offset = is_q ? 0 : slots[t] % c.block_size;
      const size_t at = is_q ? (size_t(t) * heads + h) * d : size_t((block * c.num_kv_heads + g) * c.block_size + offset) * d;
      for (int i = 0; i < d; ++i) {
        if (is_q) {
          const Number& n = want[h][i];
          wrong += !(std::abs(got[at + i] - n.value) <= 1.01 * n.error);
          wrong += has_bits && std::memcmp(&got[at + i], &bits[h][i], 4) != 0;
          continue;
        }
        const uint16_t stored = (is_v ? got_v : got_k)[at + i];
        (is_v ? left_v : left_k)[at + i] = 0x7777;
        if (has_bits || is_v) wrong += stored != f32_to_bf16(bits[h][i]);
        const Number& n = want[h][i];
        wrong += !(std::abs(bf16_to_f32(stored) - n.value) <= 1.01 * n.error + std::ldexp(std::abs(n.value) + n.error, -8));
      }
    }
  }
  CHECK_EQ(wrong, 0);
  if (wrong)
    std::cerr << "  A=" << c.num_heads << " G=" << c.num_kv_heads << " D=" << d << " norm " << int(c.norm) << " rope "
              << c.rope_dim << (c.interleaved ? " interleaved" : "") << " clip " << c.clip << " temperature "
              << c.temperature_floor << "\n";
  CHECK(left_k == untouched);
  CHECK(left_v == untouched);

  // A row alone has the same bits. A NaN stays NaN through the clip, and stays in its row.
  std::vector<float> again(qkv.begin() + 3 * heads * d, qkv.begin() + 5 * heads * d);
  again[size_t(heads) * d + size_t(d) - 1] = std::nanf("");
  const DeviceVector<float> y(again);
  args.qkv = y.get();
  cuda::qkv_post(args, 2, device_positions.get() + 3, device_rope_rows.get() + 3, device_slots.get() + 3, cache, scales.get(),
                 {});
  again = y.read();
  CHECK(std::memcmp(again.data(), &got[size_t(3) * heads * d], size_t(c.num_heads) * d * 4) == 0);
  CHECK(std::isnan(again[size_t(heads) * d + size_t(d) - 1]));
}

struct MlaPost {
  int num_heads, nope, latent, rotated, block_size;
  bool interleaved;
};

void test_mla_post(const MlaPost& c) {
  const int half = c.rotated / 2, width = c.latent + c.rotated, q_head = c.nope + c.rotated, rows = int(kPositions.size());
  const std::vector<int64_t> slots = {int64_t(c.block_size) * kBlocks - 1, -1, 0, c.block_size, -1};
  const std::vector<float> q = random_floats(size_t(rows) * c.num_heads * q_head), kv = random_floats(size_t(rows) * width),
                           norm = random_floats(size_t(c.latent)), cos = random_floats(size_t(kMaxPositions) * half),
                           sin = random_floats(cos.size()), before = random_floats(size_t(rows) * c.num_heads * width);
  const std::vector<uint16_t> untouched(size_t(kBlocks) * c.block_size * width, 0x7777);
  const DeviceVector<float> device_q(q), device_kv(kv), device_norm(norm), table_cos(cos), table_sin(sin), latent_q(before);
  const DeviceVector<int32_t> positions(kPositions);
  const DeviceVector<int64_t> device_slots(slots);
  const DeviceVector<uint16_t> k(untouched);
  const KvCacheView cache{k.get(), nullptr, DType::kBF16, kBlocks, c.block_size, 1, width, c.latent};
  const MlaPostArgs args{device_q.get(),
                         device_kv.get(),
                         c.num_heads,
                         c.nope,
                         {device_norm.get(), DType::kF32, 1, c.latent},
                         kEps,
                         {table_cos.get(), table_sin.get(), c.rotated, c.interleaved},
                         latent_q.get()};
  cuda::mla_post(args, rows, positions.get(), device_slots.get(), cache, {});

  std::vector<float> want_q = before;
  std::vector<uint16_t> want_k = untouched;
  for (int t = 0; t < rows; ++t) {
    const int position = std::max(kPositions[t], 0);
    const float *row_cos = cos.data() + position * half, *row_sin = sin.data() + position * half;
    const auto columns = [&](const std::vector<float>& from, size_t at, int count) {
      return std::vector<float>(from.begin() + ptrdiff_t(at), from.begin() + ptrdiff_t(at) + count);
    };
    for (int h = 0; h < c.num_heads; ++h) {
      const size_t at = size_t(t) * c.num_heads + h;
      const auto head = rotated(columns(q, at * q_head + c.nope, c.rotated), c.rotated, c.interleaved, row_cos, row_sin);
      std::copy(head.begin(), head.end(), want_q.begin() + ptrdiff_t(at * width) + c.latent);
    }
    if (slots[t] < 0) continue;
    std::vector<float> latent = columns(kv, size_t(t) * width, c.latent);
    latent = scaled(latent, inverse_rms(latent, kEps), norm.data());
    const auto key = rotated(columns(kv, size_t(t) * width + c.latent, c.rotated), c.rotated, c.interleaved, row_cos, row_sin);
    latent.insert(latent.end(), key.begin(), key.end());
    std::transform(latent.begin(), latent.end(), want_k.begin() + slots[t] * width, f32_to_bf16);
  }
  CHECK(latent_q.read() == want_q);
  CHECK(k.read() == want_k);
}

void test_arguments() {
  KvCacheView cache{nullptr, nullptr, DType::kBF16, 1, 16, 2, 64};
  int rotated_columns = 0;
  const auto post = [&](const KvCacheView& view) {
    QkvPostArgs args = {};
    args.num_heads = 4, args.rope.dim = rotated_columns;
    cuda::qkv_post(args, 0, nullptr, nullptr, nullptr, view, nullptr, {});
  };
  const auto unsupported = ErrorCode::kUnsupported;
  post(cache);
  for (const int64_t d : {0, 65, 514}) {
    cache.head_dim = d;
    CHECK_THROWS(post(cache), unsupported, "qkv_post", {"head size", "512", std::to_string(d)});
  }
  cache.head_dim = 64, cache.v_head_dim = 32;
  CHECK_THROWS(post(cache), unsupported, "qkv_post", {"values", "64", "32"});
  cache.v_head_dim = 0;
  for (const int columns : {-2, 3, 66}) {
    rotated_columns = columns;
    CHECK_THROWS(post(cache), ErrorCode::kInvalidArgument, "qkv_post", {"rotated", "64", std::to_string(columns)});
  }
  cache.dtype = DType::kF32;
  CHECK_THROWS(post(cache), unsupported, "qkv_post", {"bfloat16", "float32"});
  MlaPostArgs args = {};
  args.kv_norm = {nullptr, DType::kF32, 1, 32}, args.rope.dim = 8;
  cache = {nullptr, nullptr, DType::kBF16, 1, 16, 1, 40, 32};
  cuda::mla_post(args, 0, nullptr, nullptr, cache, {});
  cache.head_dim = 41;
  CHECK_THROWS(cuda::mla_post(args, 0, nullptr, nullptr, cache, {}), ErrorCode::kInvalidArgument, "mla_post", {"32 + 8", "41"});
}

}  // namespace

int main() {
  const Post posts[] = {{2, 1, 2, 1, QkNorm::kHead, 2},
                        {4, 2, 64, 16, QkNorm::kHead, 64},
                        {3, 3, 6, 3, QkNorm::kNone, 6},
                        {3, 1, 128, 16, QkNorm::kHead, 128},
                        {2, 2, 256, 5, QkNorm::kHead, 256},
                        {2, 1, 258, 5, QkNorm::kHead, 258},
                        {1, 1, 512, 3, QkNorm::kHeadAfterRope, 128, true},
                        {8, 2, 24, 1, QkNorm::kNone, 24},
                        {2, 1, 128, 16, QkNorm::kHead, 64},  // partial
                        {3, 1, 80, 3, QkNorm::kNone, 20, true},
                        {2, 2, 18, 3, QkNorm::kHead, 18, true},
                        {2, 1, 16, 1, QkNorm::kHead, 0},
                        {5, 1, 34, 4, QkNorm::kNone, 0, false, 1.5f},
                        {2, 2, 128, 16, QkNorm::kWidth, 128, false, 2.0f},  // OLMoE
                        {6, 2, 22, 3, QkNorm::kWidth, 10},
                        {1, 1, 256, 3, QkNorm::kWidth, 256, true},
                        {4, 2, 128, 16, QkNorm::kHeadAfterRope, 128},  // Hunyuan
                        {3, 1, 30, 7, QkNorm::kHeadAfterRope, 12, true, 0.5f},
                        {4, 1, 128, 16, QkNorm::kUnitAfterRope, 128, true},  // Llama 4
                        {2, 1, 10, 1, QkNorm::kUnitAfterRope, 4},
                        {2, 1, 64, 16, QkNorm::kNone, 0, false, 0, 2.0f},  // Llama 4 without rope
                        {3, 1, 12, 2, QkNorm::kHead, 6, true, 1.0f, 3.0f},
                        {4, 2, 256, 16, QkNorm::kHead, 256, false, 0, 0, true},  // Gemma 4
                        {4, 1, 512, 16, QkNorm::kHead, 512, false, 0, 0, true, true},
                        {3, 3, 10, 3, QkNorm::kNone, 4, true, 0, 0, false, true}};
  for (const Post& post : posts) test_qkv_post(post);
  const MlaPost mla_posts[] = {{1, 1, 1, 2, 1, false},      {3, 16, 32, 8, 16, false}, {5, 24, 17, 6, 3, true},
                               {2, 128, 512, 64, 16, true}, {4, 0, 70, 66, 5, false},  {2, 8, 33, 0, 4, false}};
  for (const MlaPost& post : mla_posts) test_mla_post(post);
  test_arguments();
  return check::result("test_qkv_post");
}
