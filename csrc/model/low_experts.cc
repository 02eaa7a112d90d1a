#include "model/low_experts.h"

#include "backend/cpu/expert_packer.h"
#include "model/pack_experts.h"
#include "tiers/expert_record.h"

namespace lynx_rt {

int64_t low_bytes(const CheckpointExperts& experts) {
  int64_t bytes = 0;
  for (const auto& layer : experts)
    for (const ExpertWeights& e : layer) bytes += record_bytes(e, QuantFormat::kInt4);
  return bytes;
}

std::shared_ptr<const LowExperts> make_low_experts(const CheckpointExperts& experts, WeightCopies& copies, int num_threads) {
  auto low = std::make_shared<LowExperts>(low_bytes(experts));
  uint8_t* record = low->memory;
  ExpertPacker packer("int4", num_threads);
  for (const auto& layer : experts) {
    if (layer.empty()) continue;
    std::vector<ExpertWeights>& made = low->experts.emplace_back();
    for (const ExpertWeights& e : layer) {
      for (const WeightView* v : e.views()) copies.read(*v);
      const ExpertWeights packed = packer.pack(e);
      const RecordLayout layout(packed);
      layout.write(packed, record);
      made.push_back(layout.view(record));
      record += layout.bytes();
      for (const WeightView* v : e.views()) copies.release(*v);
    }
  }
  return low;
}

}  // namespace lynx_rt
