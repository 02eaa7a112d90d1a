// Tests csrc/model/pack_experts.h: the records of a model's experts, read by the direct reader, are what the CPU backend would place.
// Usage: test_pack_experts MODEL
#include "model/pack_experts.h"

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "base/memory.h"
#include "check.h"
#include "model/family.h"
#include "same_weights.h"
#include "temp_folder.h"
#include "tiers/direct_reader.h"
#include "tiers/expert_file.h"

using namespace lynx_rt;

namespace {

void test_records(const std::string& model, const std::string& quantization) {
  const TempFolder folder;
  std::vector<int64_t> steps;
  PackOptions options;
  options.quantization = quantization;
  options.num_threads = 2;
  options.on_progress = [&](int64_t done, int64_t total) {
    CHECK(done <= total);
    steps.push_back(done);
  };
  const std::string path = folder.path("experts.bin");
  const PackedExperts packed = pack_experts(model, path, options);
  CHECK_EQ(packed.num_records, int64_t(steps.size()));
  CHECK_EQ(packed.file_bytes, int64_t(std::filesystem::file_size(path)));
  CHECK(packed.file_bytes > steps.back() && packed.file_bytes < steps.back() + (1 << 20));

  const ModelConfig config = read_model_config(model);
  const Checkpoint checkpoint = Checkpoint::open(model);
  ModelWeights weights;
  load_weights(config, checkpoint, weights, ReadCopies::kNow,
               [&](WeightUse, const BlockRows& rows) { return stays_in_blocks(rows, quantization); });
  BackendOptions b;
  b.device = "cpu";
  b.quantization = parse_quantization(quantization);
  const auto backend = make_backend(b);
  place_weights(*backend, weights, {});

  const ExpertFile file(path);
  CHECK(file.source() == (ExpertSource{config.model_type, quantization, checkpoint.fingerprint()}));
  CHECK_EQ(file.num_layers(), int64_t(weights.layers.size()));
  CHECK_EQ(file.max_record_bytes(), packed.record_bytes);
  DirectReader reader;
  for (int64_t l = 0; l < file.num_layers(); ++l) {
    const auto& experts = weights.layers[size_t(l)].experts;
    CHECK_EQ(file.num_experts(l), int64_t(experts.size()));
    for (int64_t e = 0; e < file.num_experts(l); ++e) {
      const int64_t bytes = file.layout(l, e).bytes();
      const auto release = [bytes](void* p) { release_pages(p, bytes); };
      const std::unique_ptr<void, decltype(release)> memory(allocate_pages(bytes, "test"), release);
      ReadRequest request, *const one = &request;
      request.file = file.file(), request.offset = file.record(l, e).offset, request.bytes = bytes, request.to = memory.get();
      request.crc32c = file.record(l, e).crc32c;
      reader.read(request, ReadPriority::kDemand);
      CHECK(reader.wait_any({&one, 1}, 60) && request.state() == ReadState::kReady);
      const ExpertWeights read = file.layout(l, e).view(static_cast<const uint8_t*>(memory.get()));
      const auto got = read.views(), expected = experts[size_t(e)].views();
      for (size_t i = 0; i < got.size(); ++i) CHECK(same_weights(*expected[i], *got[i]));
    }
  }
}

// An exception from the progress callback, as of Ctrl-C, leaves no file.
void test_interrupted(const std::string& model) {
  const TempFolder folder;
  PackOptions options;
  options.on_progress = [](int64_t done, int64_t total) {
    if (done > total / 2) fail(ErrorCode::kClosed, "", "interrupted");
  };
  CHECK_THROWS(pack_experts(model, folder.path("e.bin"), options), ErrorCode::kClosed, "", {"interrupted"});
  CHECK(std::filesystem::is_empty(folder.path()));
  CHECK_THROWS(pack_experts(folder.path("gone"), folder.path("e.bin"), {}), ErrorCode::kNotFound, folder.path("gone/config.json"),
               {"gone"});
}

}  // namespace

int main(int, char** argv) {
  for (const char* quantization : {"none", "dequantize", "int8", "int4"}) test_records(argv[1], quantization);
  test_interrupted(argv[1]);
  return check::result("test_pack_experts");
}
