#include "model/pack_experts.h"

#include <algorithm>

#include "backend/cpu/expert_packer.h"
#include "base/error.h"
#include "model/family.h"
#include "tiers/expert_file.h"

namespace lynx_rt {

namespace {

// Returns the expert as it will be in the file, without its data.
ExpertWeights packed_shape(ExpertWeights e, QuantFormat quantization) {
  for (WeightView* v : {&e.gate, &e.up, &e.down}) *v = view_on_cpu(*v, WeightUse::kExpert, quantization);
  return e;
}

}  // namespace

int64_t record_bytes(const ExpertWeights& e, QuantFormat quantization) {
  return RecordLayout(packed_shape(e, quantization)).bytes();
}

PackedExperts pack_experts(const std::string& path, const std::string& output, const PackOptions& options) {
  const QuantFormat quantization = parse_quantization(options.quantization);
  const ModelConfig config = read_model_config(path);
  const Checkpoint checkpoint = Checkpoint::open(path);
  ModelWeights weights;
  load_weights(config, checkpoint, weights, ReadCopies::kWhenPlaced,
               [&](WeightUse, const BlockRows& rows) { return stays_in_blocks(rows, options.quantization); });

  PackedExperts result;
  int64_t total = 0;
  for (const LayerWeights& layer : weights.layers) {
    result.num_layers += !layer.experts.empty();
    result.num_records += int64_t(layer.experts.size());
    for (const ExpertWeights& e : layer.experts) {
      const int64_t bytes = record_bytes(e, quantization);
      result.record_bytes = std::max(result.record_bytes, bytes);
      total += bytes;
    }
  }
  if (result.num_records == 0)
    fail(ErrorCode::kUnsupported, "model", path, ": ", config.model_type, " here has no experts to pack");

  ExpertFileWriter writer(output, {config.model_type, options.quantization, checkpoint.fingerprint()}, total);
  ExpertPacker packer(options.quantization, options.num_threads);
  int64_t done = 0;
  for (size_t l = 0; l < weights.layers.size(); ++l) {
    for (const ExpertWeights& e : weights.layers[l].experts) {
      for (const WeightView* v : e.views()) weights.copies.read(*v);
      const ExpertWeights packed = packer.pack(e);
      writer.add(int64_t(l), packed);
      for (const WeightView* v : e.views()) weights.copies.release(*v);
      done += RecordLayout(packed).bytes();
      if (options.on_progress) options.on_progress(done, total);
    }
    checkpoint.drop_pages();
    checkpoint.check_unchanged();
  }
  result.file_bytes = writer.finish(int64_t(weights.layers.size()));
  return result;
}

}  // namespace lynx_rt
