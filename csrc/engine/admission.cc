#include "engine/admission.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace lynx_rt {

namespace {

constexpr uint64_t kMix = 0x9E3779B97F4A7C15;    // 2^64 / golden ratio: the upper bits of a product with it are a hash
constexpr int64_t kMaxCount = int64_t(1) << 20;  // signatures after which older ones count half

int64_t whole(const std::string& key, const std::string& value, int64_t min) {
  double number = 0;
  if (!read_number(value, number) || number < double(min) || number > 1e9 || number != std::floor(number))
    invalid("admission", key, ": expected a whole number from ", min, " to 1000000000, got \"", value, "\"");
  return int64_t(number);
}

}  // namespace

AdmissionRule parse_admission(const std::string& text) {
  AdmissionRule rule;
  const size_t colon = text.find(':');
  const std::string name = text.substr(0, colon);
  if (name != "first_come" && name != "affinity") invalid("admission", "expected first_come or affinity, got \"", name, "\"");
  rule.affinity = name == "affinity";
  if (colon == std::string::npos) return rule;
  for (size_t begin = colon + 1; begin <= text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    const std::string piece = text.substr(begin, end - begin);
    const size_t equals = std::min(piece.find('='), piece.size());
    const std::string key = piece.substr(0, equals), value = piece.substr(std::min(equals + 1, piece.size()));
    if (!rule.affinity || (key != "window" && key != "skips" && key != "ms"))
      invalid("admission", "expected first_come, or affinity with keys window, skips and ms; got \"", text, "\"");
    if (key == "window") rule.window = whole(key, value, 1);
    if (key == "skips") rule.skips = whole(key, value, 0);
    if (key == "ms") rule.ms = double(whole(key, value, 0));
    begin = end + 1;
  }
  return rule;
}

void Admission::add(Request& r) {
  if (!rule_.affinity) return;
  std::array<int64_t, kBuckets> counts{};
  for (int64_t i = 0; i < r.prompt_len; ++i) ++counts[size_t((uint64_t(r.tokens[size_t(i)]) * kMix) >> 56)];
  int64_t squares = 0;
  for (const int64_t c : counts) squares += c * c;
  const double length = std::sqrt(double(squares));
  r.signature.resize(kBuckets);
  for (size_t i = 0; i < kBuckets; ++i) {
    r.signature[i] = int16_t(std::nearbyint(kScale * double(counts[i]) / length));
    sum_[i] += r.signature[i];
  }
  if (++count_ < kMaxCount) return;
  for (int64_t& s : sum_) s /= 2;
  count_ /= 2;
}

size_t Admission::choose(const Queue& waiting, const Running& running, double now) const {
  const Request& head = *waiting.front();
  if (!rule_.affinity || running.empty() || head.num_preemptions > 0 || head.num_skips >= rule_.skips) return 0;
  if (rule_.ms > 0 && (now - head.arrival_time) * 1e3 >= rule_.ms) return 0;
  std::array<int64_t, kBuckets> wanted{};
  for (const auto& r : running)
    for (size_t i = 0; i < kBuckets; ++i) wanted[i] += r->signature[i];
  for (size_t i = 0; i < kBuckets; ++i) wanted[i] -= int64_t(running.size()) * (sum_[i] / count_);
  size_t best = 0;
  int64_t best_score = 0;
  const size_t end = std::min(waiting.size(), size_t(rule_.window));
  for (size_t place = 0; place < end && waiting[place]->params.priority == head.params.priority; ++place) {
    int64_t score = 0;
    for (size_t i = 0; i < kBuckets; ++i) score += waiting[place]->signature[i] * wanted[i];
    if (place > 0 && score <= best_score) continue;
    best = place;
    best_score = score;
  }
  return best;
}

void Admission::pass_over(const Queue& waiting, size_t place) const {
  for (size_t i = 0; i < place; ++i) ++waiting[i]->num_skips;
}

}  // namespace lynx_rt
