// The choice of the waiting request that takes a free place. Requests that use the same experts share reads, and prompts of one kind use
// the same experts (arXiv 2607.00466), so that a batch of like prompts reads fewer. Alike are prompts with the same tokens, which needs no
// history of routing; bench/results/admission-lynx-nano.md compares it with orders that know experts.
#pragma once
#include <array>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "engine/request.h"

namespace lynx_rt {

struct AdmissionRule {
  bool affinity = false;  // false: first come, first served
  int64_t window = 128;   // requests at the head of the queue among which one is chosen
  int64_t skips = 128;    // how often a request may be passed over; after that it is the next
  double ms = 0;          // milliseconds since its arrival after which a request is the next; 0 = no such limit
};

// Parses "first_come", "affinity", "affinity:window=64,skips=32,ms=500". Throws kInvalidArgument (field admission).
AdmissionRule parse_admission(const std::string& text);

// Under first_come all functions do nothing, and the head of the queue is chosen. Under affinity without `ms`, choices are a function
// of the requests, in the order of their arrival, and of when places became free. Sums are integers, so every machine chooses alike.
class Admission {
 public:
  static constexpr size_t kBuckets = 256;
  static constexpr int kScale = 4096;  // length of a signature
  using Queue = std::deque<std::unique_ptr<Request>>;
  using Running = std::vector<std::unique_ptr<Request>>;

  explicit Admission(const AdmissionRule& rule) : rule_(rule) {}
  // Gives a request its signature: how often its prompt's tokens fall into each bucket of a hash, scaled to the length kScale.
  void add(Request& request);
  // Returns the place in the queue, which is not empty, of the request whose signature fits those that run best: the largest inner
  // product, both without what is common to all prompts so far. Only requests of the priority of the head are compared. The head is
  // chosen where it was preempted, was passed over `skips` times or waits for `ms`.
  size_t choose(const Queue& waiting, const Running& running, double now) const;
  // Counts that the requests before a place in the queue are passed over.
  void pass_over(const Queue& waiting, size_t place) const;

 private:
  AdmissionRule rule_;
  std::array<int64_t, kBuckets> sum_{};  // of all signatures; halved together with count_ now and then
  int64_t count_ = 0;
};

}  // namespace lynx_rt
