// Once a decode step of a size has run, the next ones must allocate nothing: counts operator new over Decoder::forward and logits.
// Usage: test_allocations MODEL_FOLDER
#include <atomic>
#include <cstdlib>
#include <new>

#include "check.h"
#include "model/decoder.h"
#include "model/family.h"
#include "model/load_weights.h"
#include "model/selection_tables.h"

namespace {
std::atomic<int64_t> allocations = 0;

void* counted(size_t bytes, size_t alignment) {
  ++allocations;
  void* p = std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment + (bytes == 0 ? alignment : 0));
  if (!p) throw std::bad_alloc();
  return p;
}
}  // namespace

void* operator new(size_t bytes) { return counted(bytes, __STDCPP_DEFAULT_NEW_ALIGNMENT__); }
void* operator new[](size_t bytes) { return counted(bytes, __STDCPP_DEFAULT_NEW_ALIGNMENT__); }
// std::stable_sort() asks for its buffer so, and gives it back to the operator delete below.
void* operator new(size_t bytes, const std::nothrow_t&) noexcept { return counted(bytes, __STDCPP_DEFAULT_NEW_ALIGNMENT__); }
void* operator new[](size_t bytes, const std::nothrow_t&) noexcept { return counted(bytes, __STDCPP_DEFAULT_NEW_ALIGNMENT__); }
void* operator new(size_t bytes, std::align_val_t alignment) { return counted(bytes, size_t(alignment)); }
void* operator new[](size_t bytes, std::align_val_t alignment) { return counted(bytes, size_t(alignment)); }
void operator delete(void* p) noexcept { std::free(p); }
void operator delete[](void* p) noexcept { std::free(p); }
void operator delete(void* p, size_t) noexcept { std::free(p); }
void operator delete[](void* p, size_t) noexcept { std::free(p); }
void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete[](void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete(void* p, size_t, std::align_val_t) noexcept { std::free(p); }
void operator delete[](void* p, size_t, std::align_val_t) noexcept { std::free(p); }

using namespace lynx_rt;

namespace {

constexpr int64_t kBlockSize = 16, kContext = 24;  // tokens before the first decode step; two pages per sequence

// A decode step of `rows` sequences at `position`.
struct DecodeBatch {
  explicit DecodeBatch(int64_t rows)
      : tokens(size_t(rows)), positions(size_t(rows)), starts(size_t(rows) + 1), tables(size_t(2 * rows)), slots(size_t(rows)) {
    for (int64_t t = 0; t < rows; ++t) {
      starts[size_t(t + 1)] = int32_t(t + 1);
      tables[size_t(2 * t)] = int32_t(2 * t);
      tables[size_t(2 * t + 1)] = int32_t(2 * t + 1);
    }
  }
  BatchView at(int32_t position) {
    int64_t rows = int64_t(tokens.size());
    for (int64_t t = 0; t < rows; ++t) {
      tokens[size_t(t)] = int32_t((7 * t + position) % 100);
      positions[size_t(t)] = position;
      slots[size_t(t)] = tables[size_t(2 * t + position / kBlockSize)] * kBlockSize + position % kBlockSize;
    }
    BatchView view;
    view.num_rows = view.num_seqs = rows;
    view.token_ids = tokens.data();
    view.positions = positions.data();
    view.slots = slots.data();
    view.query_start = starts.data();
    view.block_tables = tables.data();
    view.max_blocks = 2;
    view.phase = Phase::kDecodeOnly;
    return view;
  }
  std::vector<int32_t> tokens, positions, starts, tables;
  std::vector<int64_t> slots;
};

void test_decode(const std::string& model, int num_threads, const std::string& selection_text) {
  ModelConfig config = read_model_config(model);
  Checkpoint checkpoint = Checkpoint::open(model);
  ModelWeights weights;
  load_weights(config, checkpoint, weights);
  std::unique_ptr<Backend> backend = make_backend({"cpu", config.dtype, num_threads, ""});
  constexpr int64_t kRows = 16;
  Decoder decoder(*backend, config, weights, kRows, kRows, 64);
  KvCache cache(*backend, config, 2 * kRows, kBlockSize);
  const LayerSelections selections = SelectionTables(*backend, config).resolve(selection_text);
  std::vector<SelectionStats> stats(size_t(decoder.num_moe_layers()));
  std::vector<float> logits(size_t(kRows * config.vocab_size));
  DecodeBatch batch(kRows);
  std::vector<int32_t> rows;
  for (int32_t t = 0; t < kRows; ++t) rows.push_back(t);

  int64_t counted = 0;
  for (int32_t position = 0; position < kContext + 2; ++position) {
    BatchView view = batch.at(position);
    int64_t before = allocations;
    decoder.forward(view, cache, selections);
    decoder.logits(rows, logits.data());
    decoder.end_step(stats);
    if (position >= kContext) counted += allocations - before;
  }
  CHECK_EQ(counted, 0);
  CHECK(selections.text == "topk" || stats[0].acted);  // otherwise no allocation of the policy was counted
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  int64_t before = allocations;
  std::vector<int> some(100);
  CHECK(!some.empty() && allocations > before);  // the counter works
  for (int threads : {1, 2})
    for (const char* selection : {"topk", "lynx", "oea:k0=2", "lynx_literal", "xshare", "des_vote", "skip", "top1", "deny_rank",
                                  "capacity", "lynx@1=topk"})
      test_decode(argv[1], threads, selection);
  return check::result("test_allocations");
}
