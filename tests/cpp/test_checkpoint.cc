// Tests csrc/checkpoint/weights.h: exact accounting of tensors, and the addresses of views; and fuzzes the header under sanitizers
// (tests/checkpoint/test_safetensors.py has the error of each malformed file).
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "check.h"
#include "checkpoint/weights.h"
#include "safetensors_writer.h"
#include "temp_folder.h"

using namespace lynx_rt;

namespace {

constexpr ErrorCode kCorrupt = ErrorCode::kCorruptFile;

const uint8_t* bytes(const WeightView& view) { return static_cast<const uint8_t*>(view.data); }

void test_whole_tensors() {
  const TempFolder folder;
  folder.write("model.safetensors", safetensors({tensor("a", "BF16", {3, 4}), tensor("b", "F32", {2}), tensor("c", "F16", {5, 1}),
                                                 tensor("none", "F32", {0, 4})}));
  const Checkpoint checkpoint = Checkpoint::open(folder.path());
  CHECK_EQ(checkpoint.total_bytes(), 24 + 8 + 10);
  WeightView a, b, c, none;
  const WeightCopies owned = bind_weights(checkpoint,
                                          {whole_tensor("a", {3, 4}, &a), whole_tensor("b", {2}, &b),
                                           whole_tensor("c", {5, 1}, &c), whole_tensor("none", {0, 4}, &none)},
                                          {});
  CHECK(owned.bytes() == 0);  // nothing was copied
  CHECK_EQ(a.rows, 3);
  CHECK_EQ(a.cols, 4);
  CHECK(a.dtype == DType::kBF16);
  CHECK_EQ(a.bytes(), 24);
  CHECK_EQ(static_cast<const uint8_t*>(a.row(2))[1], 17);
  CHECK_EQ(b.rows, 1);  // a vector is one row
  CHECK_EQ(b.cols, 2);
  CHECK(b.dtype == DType::kF32);
  CHECK_EQ(c.rows, 5);
  CHECK(c.dtype == DType::kF16);
  CHECK_EQ(bytes(c)[9], 9);
  CHECK_EQ(none.rows, 0);
  CHECK_EQ(none.cols, 4);
}

// experts.gate_up_proj [E=2, 2I=4, H=3]: per expert two rows of gate, then two of up.
void test_fused_pieces() {
  const TempFolder folder;
  const std::string path = folder.write("x.safetensors", safetensors({tensor("gate_up", "BF16", {2, 4, 3})}));
  const Checkpoint checkpoint = Checkpoint::open(path);
  WeightView gate[2], up[2];
  const TensorSpec spec{"gate_up", {2, 4, 3}, {{&gate[0], 0, 2}, {&up[1], 6, 2}, {&up[0], 2, 2}, {&gate[1], 4, 2}}};
  bind_weights(checkpoint, {spec}, {});
  const uint8_t* data = checkpoint.at("gate_up").data;
  for (int e = 0; e < 2; ++e) {
    CHECK_EQ(bytes(gate[e]) - data, e * 24);
    CHECK_EQ(bytes(up[e]) - data, e * 24 + 12);
    CHECK_EQ(gate[e].rows, 2);
    CHECK_EQ(up[e].cols, 3);
  }

  const auto bind = [&](std::vector<WeightPiece> pieces) {
    return bind_weights(checkpoint, {{"gate_up", {2, 4, 3}, std::move(pieces)}}, {});
  };
  constexpr ErrorCode kBug = ErrorCode::kInternal;
  CHECK_THROWS(bind({}), kBug, "gate_up", {"cover 0 of its 24 elements"});
  CHECK_THROWS(bind({{&gate[0], 0, 7}}), kBug, "gate_up", {"cover 21 of its 24 elements"});
  CHECK_THROWS(bind({{&gate[0], 0, 5}, {&gate[1], 4, 4}}), kBug, "gate_up", {"each element once", "[0, 0] and [4, 0] overlap"});
  CHECK_THROWS(bind({{&gate[0], 0, 3}, {&gate[1], 4, 4}}), kBug, "gate_up", {"cover 21 of its 24 elements"});
  CHECK_THROWS(bind({{&gate[0], 0, 9}}), kBug, "gate_up", {"9 rows from 0", "outside [8, 3]"});
  CHECK_THROWS(bind({{&gate[0], 0, INT64_MAX}, {&gate[1], INT64_MAX, 1}}), kBug, "gate_up", {"outside [8, 3]"});
  CHECK_THROWS(bind({{&gate[0], -1, 9}}), kBug, "gate_up", {"9 rows from -1", "outside"});
  CHECK_THROWS(bind({{&gate[0], 0, -1}}), kBug, "gate_up", {"negative"});
  CHECK_THROWS(bind({{nullptr, 0, 8}}), kBug, "gate_up", {"no target"});
  CHECK_THROWS(whole_tensor("t", {2, 3, 4}, &gate[0]), kBug, "t", {"one or two dimensions", "[2, 3, 4]"});
}

void test_one_of_each_problem() {
  const TempFolder folder;
  const std::string path =
      folder.write("model.safetensors",
                   safetensors({tensor("fp8", "F8_E4M3", {4}), tensor("extra", "F32", {1}), tensor("turned", "BF16", {3, 2}),
                                tensor("fine", "BF16", {2}), tensor("worst", "I64", {1})}));
  const Checkpoint checkpoint = Checkpoint::open(folder.path());
  WeightView view;
  const std::vector<TensorSpec> specs = {whole_tensor("fine", {2}, &view), whole_tensor("absent", {2}, &view),
                                         whole_tensor("turned", {2, 3}, &view), whole_tensor("fp8", {4}, &view),
                                         whole_tensor("worst", {2}, &view)};
  CHECK_THROWS(bind_weights(checkpoint, specs, {}), kCorrupt, "absent",
               {path, "1 missing: \"absent\"", "1 unexpected: \"extra\"",
                "2 of the wrong shape: \"turned\" (expected [2, 3], got [3, 2]), \"worst\" (expected [2], got [1])",
                "2 of the wrong dtype: \"fp8\" (expected F64, F32, BF16 or F16, got F8_E4M3), \"worst\""});
  CHECK(view.empty());  // nothing is bound unless everything fits
}

void test_lists_are_cut_after_ten() {
  const TempFolder folder;
  std::vector<Tensor> tensors;
  std::vector<TensorSpec> specs;
  WeightView view;
  for (int i = 10; i < 22; ++i) {
    tensors.push_back(tensor(str_cat("extra.", i), "BF16", {1}));
    specs.push_back(whole_tensor(str_cat("absent.", i), {1}, &view));
  }
  folder.write("model.safetensors", safetensors(tensors));
  const Checkpoint checkpoint = Checkpoint::open(folder.path());
  CHECK_THROWS(
      bind_weights(checkpoint, specs, {}), kCorrupt, "absent.10",
      {"12 missing: \"absent.10\", ", "\"absent.19\" and 2 more; 12 unexpected: \"extra.10\"", "\"extra.19\" and 2 more"});
  specs.resize(10);
  CHECK_THROWS(bind_weights(checkpoint, specs, {"*"}), kCorrupt, "absent.10", {"10 missing: ", ", \"absent.19\""});
}

void test_ignore_patterns() {
  const TempFolder folder;
  folder.write("model.safetensors",
               safetensors({tensor("mtp.0.weight", "BF16", {1}), tensor("model.rotary_emb.inv_freq", "F32", {1}),
                            tensor("lm_head.weight", "BF16", {1}), tensor("counts", "I64", {1})}));
  const Checkpoint checkpoint = Checkpoint::open(folder.path());
  const auto bind = [&](const std::vector<std::string>& ignore) { return bind_weights(checkpoint, {}, ignore); };
  CHECK(bind({"mtp.*", "*.inv_freq", "lm_head.weight", "counts"}).bytes() == 0);
  CHECK(bind({"*"}).bytes() == 0);
  CHECK_THROWS(bind({"mtp.*", "*.inv_freq", "lm_head.weight"}), kCorrupt, "counts", {"1 unexpected: \"counts\""});
  // Without a star a pattern is a whole name. A star is allowed at one end only.
  CHECK_THROWS(bind({"mtp.", "inv_freq", "lm_head*", "*counts"}), kCorrupt, "model.rotary_emb.inv_freq",
               {"2 unexpected: \"model.rotary_emb.inv_freq\", \"mtp.0.weight\""});
}

void test_tensor_used_twice() {
  const TempFolder folder;
  folder.write("model.safetensors", safetensors({tensor("w", "BF16", {2})}));
  const Checkpoint checkpoint = Checkpoint::open(folder.path());
  WeightView a, b;
  const std::vector<TensorSpec> specs = {whole_tensor("w", {2}, &a), whole_tensor("w", {2}, &b)};
  CHECK_THROWS(bind_weights(checkpoint, specs, {}), ErrorCode::kInternal, "w", {"weight table: w: named twice"});
}

void test_unaligned_data_is_copied() {
  const TempFolder folder;
  // There is one byte of data before "half", and the header ends on an odd byte, so neither tensor is aligned.
  const Tensor half = tensor("half", "F16", {2, 3}), full = tensor("full", "F32", {2, 2});
  for (const size_t padding : {0, 1, 2, 3}) {
    folder.write("model.safetensors", safetensors({tensor("u8", "U8", {1}), half, full}, padding));
    WeightView h, f;
    WeightCopies owned;
    const Checkpoint checkpoint = Checkpoint::open(folder.path());
    owned = bind_weights(checkpoint, {whole_tensor("half", {2, 3}, &h), whole_tensor("full", {2, 2}, &f)}, {"u8"});
    const bool half_moved = (1 + padding) % 2 != 0, full_moved = (13 + padding) % 4 != 0;
    CHECK_EQ(owned.bytes() > 0, half_moved || full_moved);
    CHECK_EQ(h.data != checkpoint.at("half").data, half_moved);
    CHECK_EQ(f.data != checkpoint.at("full").data, full_moved);
    CHECK_EQ(reinterpret_cast<uintptr_t>(h.data) % 2, 0);
    CHECK_EQ(reinterpret_cast<uintptr_t>(f.data) % 4, 0);
    CHECK(std::memcmp(h.data, half.data.data(), half.data.size()) == 0);
    CHECK(std::memcmp(f.data, full.data.data(), full.data.size()) == 0);
  }
}

void test_mapped_file_moves() {
  const TempFolder folder;
  MappedFile a(folder.write("a", "aa"));
  MappedFile b(folder.write("b", "bbb"));
  const uint8_t* data = b.data();
  a = std::move(b);
  CHECK_EQ(a.data() == data, true);
  CHECK_EQ(a.size(), 3);
  CHECK_EQ(a.path(), folder.path("b"));
  const MappedFile c(std::move(a));
  CHECK_EQ(c.data()[2], 'b');
  CHECK(a.data() == nullptr && a.size() == 0);
}

// A path with a NUL is refused: the system would end the name at the NUL, and open another file than the one that was checked.
void test_path_with_nul() {
  const TempFolder folder;
  const std::string path = folder.write("a", "aa") + std::string("\0.txt", 5);
  CHECK_THROWS(MappedFile(path), ErrorCode::kNotFound, path, {"NUL"});
  CHECK_THROWS(Checkpoint::open(path), ErrorCode::kNotFound, path, {"NUL"});
}

void test_checkpoint_moves() {
  const TempFolder folder;
  folder.write("model.safetensors", safetensors({tensor("w", "BF16", {2})}));
  Checkpoint first = Checkpoint::open(folder.path());
  const uint8_t* data = first.at("w").data;
  const Checkpoint second = std::move(first);
  CHECK(second.at("w").data == data && data[3] == 3);
  CHECK_THROWS(second.at("v"), kCorrupt, "v", {folder.path("model.safetensors"), "missing tensor \"v\""});
}

// A damaged header must be refused, or describe tensors that can be read.
void test_header_fuzz() {
  const TempFolder folder;
  const std::string valid = safetensors(
      {tensor("a.weight", "BF16", {3, 4}), tensor("b", "F32", {2, 1, 2}), tensor("c", "U8", {7}), tensor("d", "F16", {0, 5})});
  const size_t header_end = valid.size() - (24 + 16 + 7);
  std::mt19937 random(20260);
  const auto below = [&](size_t n) { return size_t(random() % n); };
  constexpr std::string_view kTokens = "0123456789[]{},:\"-.eE \\";
  int loaded = 0, refused = 0;
  uint64_t sum = 0;
  for (int round = 0; round < 3000; ++round) {
    std::string bad = valid;
    for (size_t n = 1 + below(3); n > 0; --n) {
      // Half of the time it is a byte that keeps the JSON plausible, to get past the parser.
      const size_t at = below(header_end);
      bad[at] = at >= 8 && below(2) ? kTokens[below(kTokens.size())] : char(below(256));
    }
    const std::string path = folder.write("fuzz.safetensors", bad);
    try {
      const Checkpoint checkpoint = Checkpoint::open(path);
      for (const auto& [name, info] : checkpoint.tensors()) {
        for (int64_t i = 0; i < info.bytes; ++i) sum += info.data[i];
      }
      ++loaded;
    } catch (const Error& e) {
      CHECK(e.code() == kCorrupt);
      ++refused;
    }
  }
  CHECK(loaded > 0 && refused > 0 && sum > 0);
}

}  // namespace

int main() {
  test_whole_tensors();
  test_fused_pieces();
  test_one_of_each_problem();
  test_lists_are_cut_after_ten();
  test_ignore_patterns();
  test_tensor_used_twice();
  test_unaligned_data_is_copied();
  test_mapped_file_moves();
  test_path_with_nul();
  test_checkpoint_moves();
  test_header_fuzz();
  return check::result("test_checkpoint");
}
