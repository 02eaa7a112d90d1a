#include <algorithm>
#include <random>

#include "base/clock.h"
#include "base/memory.h"
#include "tiers/direct_reader.h"

namespace lynx_rt {

namespace {

constexpr int64_t kPiece = 1 << 20, kLeastFile = 64 << 20;
constexpr int kReads = 24;          // per depth and round
constexpr int kRounds = 2;          // the better one counts: the disk may be busy with others
constexpr double kAsGoodAs = 0.85;  // of the best rate
constexpr double kWait = 1;         // seconds, after which the state is looked at again

}  // namespace

std::vector<DepthRate> measure_depth(DirectReader& reader, const std::shared_ptr<const DirectFile>& file) {
  if (file->size() < kLeastFile) return {};
  std::vector<DepthRate> rates;
  for (int depth = 1; depth <= reader.max_depth(); depth *= 2) rates.push_back({depth, 0});
  const auto release = [](void* p) { release_pages(p, kReads * kPiece); };
  std::unique_ptr<void, decltype(release)> memory(allocate_pages(kReads * kPiece, "measure_depth"), release);
  std::mt19937_64 random(1);
  for (int round = 0; round < kRounds; ++round)
    for (DepthRate& r : rates) {
      reader.set_depth(r.depth);
      std::vector<ReadRequest> requests(kReads);
      const double begin = now();
      for (size_t i = 0; i < kReads; ++i) {
        requests[i].file = file;
        requests[i].offset = int64_t(random() % uint64_t(file->size() / kPiece)) * kPiece;
        requests[i].bytes = kPiece;
        requests[i].to = static_cast<char*>(memory.get()) + int64_t(i) * kPiece;
        reader.read(requests[i], ReadPriority::kDemand);
      }
      const ReadRequest* failed = nullptr;
      for (ReadRequest& request : requests) {
        ReadRequest* const one = &request;
        while (!request.done()) reader.wait_any({&one, 1}, kWait);
        if (request.state() == ReadState::kFailed) failed = &request;
      }
      if (failed) fail(failed->error_code(), file->path(), failed->error());
      r.rate = std::max(r.rate, kReads * kPiece / (now() - begin));
    }
  double best = 0;
  for (const DepthRate& r : rates) best = std::max(best, r.rate);
  reader.set_depth(
      std::find_if(rates.begin(), rates.end(), [&](const DepthRate& r) { return r.rate >= kAsGoodAs * best; })->depth);
  return rates;
}

}  // namespace lynx_rt
