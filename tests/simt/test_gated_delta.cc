// Compares the ops of the CUDA backend that keep a state with the CPU's, and tests their order guarantee bit by bit: cut into pieces, beside
// other sequences, and in padded decode steps.
#include <algorithm>
#include <cmath>
#include <memory>
#include <random>
#include <vector>

#include "backend/device_array.h"
#include "check.h"

using namespace lynx_rt;

namespace {

std::mt19937 generator(12);
std::vector<float> random_floats(int64_t count, float scale = 1, float mean = 0) {
  std::normal_distribution<float> normal(mean, scale);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& v : values) v = normal(generator);
  return values;
}

// Rows [begin, end) of a sequence.
struct Span {
  int seq;
  int64_t begin, end;
};

// An op that keeps a state, with random weights and three sequences.
class Layer {
 public:
  virtual ~Layer() = default;
  virtual int64_t columns() const = 0;                  // of a row of x
  virtual int64_t stride() const { return columns(); }  // of x in the op's memory
  virtual int64_t values() const = 0;                   // columns of the result
  virtual int64_t state_size() const = 0;
  // `weights`: those of `weights_`, placed.
  virtual void call(Backend& backend, const std::vector<WeightView>& weights, float* x, const BatchView& rows,
                    const StateView& states, Activations& out) const = 0;

  int64_t length(int seq) const { return int64_t(rows[size_t(seq)].size()) / columns(); }

  std::vector<std::vector<float>> rows;
  std::vector<std::pair<std::vector<float>, int64_t>> weights_;  // values, and number of rows

 protected:
  void add(int64_t num_rows, int64_t num_columns, float scale = 1, float mean = 0) {
    weights_.emplace_back(random_floats(num_rows * num_columns, scale, mean), num_rows);
  }
  void add_rates(int64_t heads) {
    add(1, heads);
    for (float& rate : weights_.back().first) rate = -std::exp(rate);
  }
  void add_rows() {
    for (const int64_t length : {23, 9, 1}) rows.push_back(random_floats(length * columns()));
  }
};

// gated_delta_rule(), whose columns lie kind by kind.
class DeltaLayer : public Layer {
 public:
  explicit DeltaLayer(const DeltaShape& s) : shape(s) {
    for (const int64_t n : {s.key_heads * s.key_dim, s.key_heads * s.key_dim, s.values()}) add(s.conv_width, n, 0.7f);
    add_rates(s.value_heads);
    add(1, s.value_heads * s.decays());
    add(1, s.value_dim, 0.3f, 1);
    add_rows();
  }
  int64_t columns() const override { return shape.projected_columns(); }
  int64_t values() const override { return shape.values(); }
  int64_t state_size() const override { return shape.state_size(); }
  void call(Backend& backend, const std::vector<WeightView>& w, float* x, const BatchView& batch, const StateView& states,
            Activations& out) const override {
    const DeltaShape& s = shape;
    const int64_t r = s.values_per_key(), keys = s.key_heads * s.key_dim, z = s.channels(), b = z + s.values();
    const GatedDeltaArgs args{x,
                              columns(),
                              s,
                              {0, s.key_dim},
                              {keys, s.key_dim},
                              {2 * keys, r * s.value_dim},
                              {z, r * s.value_dim},
                              {b, r},
                              {b + s.value_heads, r * s.decays()},
                              {w[0], w[1], w[2]},
                              w[3],
                              w[4],
                              w[5],
                              1e-6f,
                              s.channel_decay};
    backend.gated_delta_rule(args, batch, states, out);
  }

  DeltaShape shape;
};

class MambaLayer : public Layer {
 public:
  MambaLayer(const Mamba2Shape& s, bool bias) : shape(s), bias(bias) {
    add(s.conv_width, s.channels(), 0.7f);
    add_rates(s.heads);
    add(1, s.heads);
    add(1, s.heads);
    add(1, s.values(), 0.3f, 1);
    if (bias) add(1, s.channels());
    add_rows();
  }
  int64_t columns() const override { return shape.projected_columns(); }
  int64_t stride() const override { return shape.row_columns(); }
  int64_t values() const override { return shape.values(); }
  int64_t state_size() const override { return shape.state_size(); }
  void call(Backend& backend, const std::vector<WeightView>& w, float* x, const BatchView& batch, const StateView& states,
            Activations& out) const override {
    const Mamba2Args args{x,    stride(), shape, w[0],  bias ? w[5] : WeightView{}, w[1],
                          w[2], w[3],     w[4],  1e-5f, bias ? 0.0f : 0.4f,         bias ? INFINITY : 0.9f};
    backend.mamba2(args, batch, states, out);
  }

  Mamba2Shape shape;
  bool bias;
};

class ConvLayer : public Layer {
 public:
  ConvLayer(int64_t channels, int64_t width, bool bias) : channels(channels), bias(bias) {
    add(width, channels, 0.7f);
    if (bias) add(1, channels);
    add_rows();
  }
  int64_t columns() const override { return 3 * channels; }
  int64_t values() const override { return channels; }
  int64_t state_size() const override { return (weights_[0].second - 1) * channels; }
  void call(Backend& backend, const std::vector<WeightView>& w, float* x, const BatchView& batch, const StateView& states,
            Activations& out) const override {
    backend.short_conv({x, columns(), channels, w[0], bias ? w[1] : WeightView{}}, batch, states, out);
  }

  int64_t channels;
  bool bias;
};

// A layer on a backend, with the states of its sequences in slots 2, 0 and 1.
class Placed {
 public:
  Placed(const Layer& layer, const char* device) : layer_(layer) {
    BackendOptions o;
    o.device = device;
    o.compute_dtype = std::string(device) == "cpu" ? DType::kF32 : DType::kBF16;
    o.num_threads = 1;
    backend_ = make_backend(o);
    for (const auto& [values, num_rows] : layer.weights_)
      weights_.push_back(
          backend_->place({values.data(), DType::kF32, num_rows, int64_t(values.size()) / num_rows}, WeightUse::kVector));
    StepLimits limits;
    limits.max_rows = limits.max_logit_rows = 64;
    limits.hidden_size = limits.max_columns = layer.values();
    limits.num_heads = limits.num_kv_heads = 1;
    limits.head_dim = 16;
    limits.vocab_size = 10;
    backend_->reserve(limits);
    stride_ = round_up(layer.state_size() * int64_t(sizeof(float)), 64);
    states_ = DeviceArray<char>(*backend_, 3 * stride_, "states");
    x_ = DeviceArray<float>(*backend_, 64 * layer.stride(), "x");
    out_ = Activations(*backend_, 64, layer.values(), "out");
  }

  // Returns the rows of all spans.
  std::vector<float> run(const std::vector<Span>& spans, Phase phase = Phase::kPrefill) {
    const int64_t width = layer_.columns();
    std::vector<float> x;
    std::vector<int32_t> start = {0}, slots, positions;
    for (const Span& s : spans) {
      const std::vector<float>& rows = layer_.rows[size_t(s.seq)];
      for (int64_t p = s.begin; p < s.end; ++p) {
        x.insert(x.end(), rows.begin() + p * width, rows.begin() + (p + 1) * width);
        x.resize(x.size() + size_t(layer_.stride() - width));
        positions.push_back(int32_t(p));
      }
      start.push_back(int32_t(positions.size()));
      slots.push_back((s.seq + 2) % 3);
    }
    const std::vector<int32_t> zeros(positions.size() + spans.size(), 0);
    const std::vector<int64_t> no_slots(positions.size(), -1);
    BatchView batch;
    batch.num_rows = int64_t(positions.size());
    batch.num_seqs = int64_t(spans.size());
    batch.token_ids = zeros.data();
    batch.positions = positions.data();
    batch.slots = no_slots.data();
    batch.query_start = start.data();
    batch.block_tables = zeros.data();
    batch.max_blocks = 1;
    batch.state_slots = slots.data();
    batch.phase = phase;
    const BatchView rows = backend_->begin_step(batch);
    backend_->write(x_.get(), x.data(), int64_t(x.size() * sizeof(float)));
    layer_.call(*backend_, weights_, x_.get(), rows, {states_.get(), stride_}, out_);
    std::vector<float> result(size_t(batch.num_rows * layer_.values()));
    backend_->read(result.data(), out_.f32(), int64_t(result.size() * sizeof(float)));
    backend_->end_step({});
    return result;
  }

  // Returns the three states.
  std::vector<float> states() {
    std::vector<float> result(size_t(3 * stride_) / sizeof(float));
    backend_->read(result.data(), states_.get(), 3 * stride_);
    return result;
  }

 private:
  const Layer& layer_;
  std::unique_ptr<Backend> backend_;
  std::vector<WeightView> weights_;
  int64_t stride_ = 0;
  DeviceArray<char> states_;
  DeviceArray<float> x_;
  Activations out_;
};

// Both sum in float32 in orders of their own; a state forgets what it does not read, so that errors do not add up over 23 rows.
void check_close(const std::vector<float>& got, const std::vector<float>& want) {
  CHECK_EQ(got.size(), want.size());
  float largest = 0;
  for (const float v : want) largest = std::max(largest, std::abs(v));
  for (size_t i = 0; i < want.size(); ++i) CHECK(std::abs(got[i] - want[i]) <= 2e-5f * largest);
}

void test_layer(const Layer& layer) {
  const std::vector<Span> whole = {{0, 0, 23}, {1, 0, 9}, {2, 0, 1}};
  Placed cpu(layer, "cpu"), cuda(layer, "cuda");
  const std::vector<float> want = cuda.run(whole);
  check_close(want, cpu.run(whole));
  check_close(cuda.states(), cpu.states());
  const int64_t width = layer.values();
  const auto rows_of = [&](const std::vector<float>& rows, int64_t begin, int64_t end) {
    return std::vector<float>(rows.begin() + begin * width, rows.begin() + end * width);
  };

  Placed pieces(layer, "cuda");
  const int64_t first_row[] = {0, 23, 32};
  const auto check_piece = [&](const Span& span) {
    const std::vector<float> got = pieces.run({span});
    CHECK(got == rows_of(want, first_row[span.seq] + span.begin, first_row[span.seq] + span.end));
  };
  const std::vector<float> first = pieces.run({{1, 0, 3}, {0, 0, 10}});
  CHECK(rows_of(first, 0, 3) == rows_of(want, 23, 26));
  CHECK(rows_of(first, 3, 13) == rows_of(want, 0, 10));
  check_piece({2, 0, 1});
  check_piece({0, 10, 11});
  check_piece({0, 11, 20});
  // Steps that are padded to four rows.
  for (int64_t t = 0; t < 3; ++t) {
    const std::vector<float> two = pieces.run({{0, 20 + t, 21 + t}, {1, 3 + t, 4 + t}}, Phase::kDecodeOnly);
    CHECK(rows_of(two, 0, 1) == rows_of(want, 20 + t, 21 + t));
    CHECK(rows_of(two, 1, 2) == rows_of(want, 26 + t, 27 + t));
  }
  check_piece({1, 6, 9});
  CHECK(pieces.states() == cuda.states());
}

}  // namespace

int main() {
  // Key heads, value heads, dk, dv, width: sizes off the warp, every kernel, and one to three value heads of a key head.
  for (const DeltaShape& shape :
       {DeltaShape{1, 1, 1, 1, 2}, DeltaShape{2, 4, 8, 12, 4}, DeltaShape{2, 6, 33, 40, 3}, DeltaShape{1, 2, 128, 128, 4},
        DeltaShape{1, 1, 130, 7, 16}, DeltaShape{1, 1, 256, 9, 5}, DeltaShape{2, 6, 33, 40, 3, true},
        DeltaShape{1, 1, 1, 1, 2, false, true}, DeltaShape{3, 3, 33, 40, 3, false, true},
        DeltaShape{2, 2, 128, 128, 4, false, true}, DeltaShape{1, 2, 130, 7, 16, false, true}})
    test_layer(DeltaLayer(shape));
  for (const Mamba2Shape& shape : {Mamba2Shape{1, 1, 1, 1, 2}, Mamba2Shape{4, 12, 2, 8, 4}, Mamba2Shape{6, 33, 2, 40, 3},
                                   Mamba2Shape{2, 64, 1, 128, 4}, Mamba2Shape{3, 7, 3, 130, 16}})
    for (const bool bias : {false, true}) test_layer(MambaLayer(shape, bias));
  for (const bool bias : {false, true})
    for (const auto& [channels, width] : {std::pair(1, 2), {40, 3}, {129, 4}, {300, 16}})
      test_layer(ConvLayer(channels, width, bias));
  return check::result("test_gated_delta");
}
