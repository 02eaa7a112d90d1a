#include <algorithm>
#include <array>
#include <vector>

#include "model/load_weights.h"

namespace lynx_rt {

namespace {

// The views of weights that are placed together: first those that products read, whose number is `products`.
struct Views {
  std::vector<WeightView*> all;
  size_t products;
};

Views views(const WeightSlot& slot) {
  return {{slot.view}, slot.use == WeightUse::kMatrix || slot.use == WeightUse::kHead ? 1u : 0u};
}

Views views(std::span<ExpertWeights> mlps) {
  Views out{{}, 3 * mlps.size()};
  for (ExpertWeights& e : mlps) out.all.insert(out.all.end(), {&e.gate, &e.up, &e.down});
  for (ExpertWeights& e : mlps) out.all.insert(out.all.end(), {&e.gate_bias, &e.up_bias, &e.down_bias});
  return out;
}

Views views(std::span<WeightView> heads) {
  Views out{{}, heads.size()};
  for (WeightView& v : heads) out.all.push_back(&v);
  return out;
}

void place(Backend& backend, const WeightSlot& slot) { *slot.view = backend.place(*slot.view, slot.use); }
void place(Backend& backend, std::span<ExpertWeights> mlps) { backend.place_experts(mlps); }
void place(Backend& backend, std::span<WeightView> heads) { backend.place_heads(heads); }

int64_t bytes_of(const Views& views) {
  int64_t bytes = 0;
  for (const WeightView* v : views.all) bytes += v->bytes();
  return bytes;
}

// The bytes of the weights for which counts(view) holds; a shared output projection counts once.
template <class Counts>
int64_t sum_bytes(const ModelWeights& weights, Counts counts) {
  int64_t total = 0;
  for (const Placing& placing : weights.placing)
    visit_weights(placing, [&](const WeightView& v, WeightUse) { total += counts(v) ? v.bytes() : 0; });
  const bool shared = weights.lm_head.data == weights.embed.data && counts(weights.lm_head);
  return shared ? total - weights.lm_head.bytes() : total;
}

}  // namespace

int64_t weight_bytes(const ModelWeights& weights) {
  return sum_bytes(weights, [](const WeightView&) { return true; });
}

int64_t weight_bytes_on_cpu(const ModelWeights& weights, QuantFormat quantization) {
  int64_t total = 0;
  for (const Placing& placing : weights.placing)
    visit_weights(placing, [&](const WeightView& from, WeightUse use) {
      const WeightView view = view_on_cpu(from, use, quantization);
      if (use != WeightUse::kHead || view.data != weights.embed.data) total += view.bytes();
    });
  return total;
}

int64_t mapped_weight_bytes(const ModelWeights& weights, const std::function<bool(const void*)>& is_mapped) {
  return sum_bytes(weights, [&](const WeightView& v) { return !v.empty() && is_mapped(v.data); });
}

void place_weights(Backend& backend, ModelWeights& weights, const Progress& progress) {
  const int64_t total = weight_bytes(weights);
  const void* embedding = weights.embed.data;
  int64_t done = 0;
  for (const Placing& placing : weights.placing) {
    const Views now = std::visit([](const auto& together) { return views(together); }, placing);
    std::vector<WeightView> before;
    for (const WeightView* v : now.all) before.push_back(*v);
    const int64_t bytes = bytes_of(now);
    // Copies are read just before they are placed, so that they are never all in memory.
    for (size_t i = backend.reads_products() ? 0 : now.products; i < now.all.size(); ++i) weights.copies.read(before[i]);
    std::visit([&](const auto& together) { place(backend, together); }, placing);
    for (size_t i = 0; i < now.products; ++i) {
      WeightView& view = *now.all[i];
      if (view.data != before[i].data || view.data == embedding) continue;
      if (const int64_t size = weights.copies.extent(view)) view = backend.keep(view, size);
    }
    // A tied embedding is placed twice, so its values are still needed after the first time.
    for (size_t i = 0; i < before.size(); ++i)
      if (before[i].data != now.all[i]->data && before[i].data != embedding) weights.copies.release(before[i]);
    done = std::min(total, done + bytes);
    if (progress && bytes > 0) progress(done, total);
  }
}

}  // namespace lynx_rt
