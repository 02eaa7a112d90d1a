// Tests csrc/checkpoint/gguf.h, gguf_model.h: a small model's config and tensors, and damaged files under sanitizers
// (tests/checkpoint/test_gguf_hostile.py has the error of each malformed file).
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "checkpoint/gguf_blocks.h"
#include "checkpoint/gguf_model.h"
#include "temp_folder.h"

using namespace lynx_rt;

namespace {

// Writes the parts of a file one after the other.
class Bytes {
 public:
  template <class T>
  Bytes& number(T value) {
    text_.append(reinterpret_cast<const char*>(&value), sizeof value);
    return *this;
  }
  Bytes& text(const std::string& s) {
    number(uint64_t(s.size()));
    text_ += s;
    return *this;
  }
  Bytes& key(const std::string& name, uint32_t value) { return text(name).number(uint32_t(4)).number(value); }
  Bytes& key(const std::string& name, float value) { return text(name).number(uint32_t(6)).number(value); }
  Bytes& key(const std::string& name, const std::string& value) { return text(name).number(uint32_t(8)).text(value); }
  std::string take() { return std::move(text_); }
  size_t size() const { return text_.size(); }

 private:
  std::string text_;
};

struct Entry {
  std::string name;
  std::vector<uint64_t> dims;  // the fastest first
  uint32_t type;
  uint64_t bytes;
};

// Returns a model of one layer with two experts, and where its data begin.
std::pair<std::string, size_t> small_model() {
  constexpr uint32_t kF32 = 0, kQ8 = 8;
  const std::vector<Entry> entries = {{"token_embd.weight", {32, 4}, kQ8, 4 * 34},
                                      {"output_norm.weight", {32}, kF32, 128},
                                      {"blk.0.ffn_gate_inp.weight", {32, 2}, kF32, 256},
                                      {"blk.0.ffn_up_exps.weight", {32, 3, 2}, kQ8, 6 * 34},
                                      {"blk.0.ffn_down_exps.weight", {32, 3, 2}, kQ8, 6 * 34},
                                      {"rope_freqs.weight", {4}, kF32, 16}};
  Bytes out;
  out.number(uint32_t(0x46554747)).number(uint32_t(3)).number(uint64_t(entries.size())).number(uint64_t(13));
  out.key("general.architecture", std::string("qwen3moe")).key("general.alignment", uint32_t(32));
  out.key("qwen3moe.block_count", uint32_t(1)).key("qwen3moe.context_length", uint32_t(64));
  out.key("qwen3moe.embedding_length", uint32_t(32)).key("qwen3moe.attention.head_count", uint32_t(4));
  out.key("qwen3moe.attention.layer_norm_rms_epsilon", 1e-6f).key("qwen3moe.rope.freq_base", 1e4f);
  out.key("qwen3moe.expert_count", uint32_t(2)).key("qwen3moe.expert_used_count", uint32_t(1));
  out.key("qwen3moe.expert_feed_forward_length", uint32_t(3));
  out.key("tokenizer.ggml.eos_token_id", uint32_t(3));
  out.text("tokenizer.ggml.tokens").number(uint32_t(9)).number(uint32_t(8)).number(uint64_t(2)).text("a").text("b");
  uint64_t offset = 0;
  for (const Entry& e : entries) {
    out.text(e.name).number(uint32_t(e.dims.size()));
    for (const uint64_t d : e.dims) out.number(d);
    out.number(e.type).number(offset);
    offset += (e.bytes + 31) / 32 * 32;
  }
  while (out.size() % 32) out.number(uint8_t(0));
  const size_t begin = out.size();
  for (uint64_t i = 0; i < offset; ++i) out.number(uint8_t(i % 61));
  return {out.take(), begin};
}

void test_model() {
  const TempFolder folder;
  const GgufFile file = GgufFile::open(folder.write("m.gguf", small_model().first));
  const Json config = gguf_config(file);
  CHECK_EQ(*config.find("model_type")->as<std::string>(), "qwen3_moe");
  CHECK_EQ(*config.find("hidden_size")->as<int64_t>(), 32);
  CHECK_EQ(*config.find("head_dim")->as<int64_t>(), 8);
  CHECK_EQ(*config.find("rms_norm_eps")->as<double>(), 1e-6);  // as config.json has it, not as float32 rounds it
  CHECK_EQ(*config.find("dtype")->as<std::string>(), "bfloat16");
  CHECK(*config.find("tie_word_embeddings")->as<bool>());
  CHECK_EQ(config.find("rope_scaling")->find("short_factor")->as<Json::Array>()->size(), size_t(4));
  const auto tensors = gguf_tensors(file);
  CHECK_EQ(tensors.size(), size_t(3 + 2 * 2));  // the rope's factors are in the config
  const TensorInfo &first = tensors.at("model.layers.0.mlp.experts.0.up_proj.weight"),
                   &second = tensors.at("model.layers.0.mlp.experts.1.up_proj.weight");
  CHECK_EQ(second.shape, (std::vector<int64_t>{3, 32}));
  CHECK_EQ(second.bytes, 3 * 34);
  CHECK(second.data == first.data + 3 * 34);
  CHECK_EQ(second.dtype, "Q8_0");
}

// A damaged header must be refused, or describe tensors whose data can be read.
void test_fuzz() {
  const TempFolder folder;
  const auto [valid, begin] = small_model();
  std::mt19937_64 random(20261);
  const auto below = [&](size_t n) { return size_t(random() % n); };
  constexpr uint64_t kNumbers[] = {0, 1, 2, 3, 31, 255, uint64_t(1) << 20, uint64_t(1) << 32, uint64_t(1) << 62, ~uint64_t(0)};
  int loaded = 0, refused = 0;
  uint64_t sum = 0;
  for (int round = 0; round < 6000; ++round) {
    std::string bad = valid;
    for (size_t n = 1 + below(3); n > 0; --n) {
      const size_t at = below(begin - 8);
      if (below(2)) {
        bad[at] = char(below(256));
      } else {
        std::memcpy(bad.data() + at, &kNumbers[below(std::size(kNumbers))], below(2) ? 4 : 8);
      }
    }
    if (below(10) == 0) bad.resize(below(bad.size()));
    const std::string path = folder.write("fuzz.gguf", bad);
    try {
      const GgufFile file = GgufFile::open(path);
      gguf_config(file);
      for (const auto& [name, info] : gguf_tensors(file)) {
        for (int64_t i = 0; i < info.bytes; ++i) sum += info.data[i];
        const GgufType* type = find_gguf_type(info.dtype);
        float values[256];
        if (const DecodeBlocks decode = type && info.bytes > 0 ? decoder_of(*type) : nullptr) {
          decode(info.data, type->values, values);
          sum += values[0] > 0;
        }
      }
      ++loaded;
    } catch (const Error& e) {
      CHECK(e.code() == ErrorCode::kCorruptFile || e.code() == ErrorCode::kUnsupported || e.code() == ErrorCode::kNotFound);
      ++refused;
    }
  }
  CHECK(loaded > 100 && refused > 1000 && sum > 0);
}

}  // namespace

int main() {
  test_model();
  test_fuzz();
  return check::result("test_gguf");
}
