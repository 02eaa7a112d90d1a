// Binds the bookkeeping of resident experts, for tests.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/error.h"
#include "base/memory.h"
#include "bindings.h"
#include "tiers/direct_reader.h"
#include "tiers/expert_file.h"
#include "tiers/residency.h"

namespace py = pybind11;

namespace lynx_rt {

namespace {

py::dict simulate(const std::string& policy, const std::vector<int64_t>& quota, int64_t num_experts, const ExpertHistory& used,
                  const ExpertHistory& lists, const ExpertHistory& wanted) {
  Residency residency(parse_residency(policy), quota, num_experts, lists);
  py::list residents, counts;  // [layers][steps], before the step; [layers]
  for (size_t l = 0; l < used.size(); ++l) {
    py::list of_layer;
    for (size_t s = 0; s < used[l].size(); ++s) {
      const std::vector<int32_t>& experts = used[l][s];
      py::list now;
      for (int64_t e = 0; e < num_experts; ++e)
        if (residency.cost(int64_t(l))[size_t(e)] == 0) now.append(e);
      of_layer.append(now);
      residency.update(int64_t(l), experts, wanted.empty() ? experts : wanted.at(l).at(s));
    }
    residents.append(of_layer);
    const Residency::Counts& c = residency.counts(int64_t(l));
    counts.append(py::make_tuple(c.used, c.hits, c.reads, c.inserted, c.evicted));
  }
  return py::dict(py::arg("residents") = residents, py::arg("counts") = counts);
}

// Reads whole records of an expert file at random, as a store does, without computing.
class ExpertReadProbe {
 public:
  explicit ExpertReadProbe(const std::string& path) : file_(path), bytes_(file_.max_record_bytes()) {
    for (int64_t l = 0; l < file_.num_layers(); ++l)
      for (int64_t e = 0; e < file_.num_experts(l); ++e)
        records_.emplace_back(file_.record(l, e).offset, file_.layout(l, e).bytes());
    memory_ = static_cast<uint8_t*>(allocate_pages(kSlots * bytes_, "probe"));
    measure_depth(reader_, file_.file());
  }
  ~ExpertReadProbe() {
    reader_.close(10);
    release_pages(memory_, kSlots * bytes_);
  }

  // Returns bytes per second.
  double measure(int64_t num_records) {
    std::vector<ReadRequest> slots(kSlots);
    std::vector<ReadRequest*> reading;
    int64_t bytes = 0;
    const double start = now();
    for (int64_t i = 0; i < num_records || !reading.empty();) {
      if (i < num_records && reading.size() < size_t(kSlots)) {
        const size_t s =
            size_t(std::find_if(slots.begin(), slots.end(), [](const auto& r) { return r.state() == ReadState::kAbsent; }) -
                   slots.begin());
        const auto& [offset, length] = records_[random_() % records_.size()];
        ReadRequest& r = slots[s];
        r.file = file_.file(), r.offset = offset, r.bytes = length, r.to = memory_ + int64_t(s) * bytes_;
        reader_.read(r, ReadPriority::kDemand);
        reading.push_back(&r);
        bytes += length;
        ++i;
        continue;
      }
      reader_.wait_any(reading, 10);
      std::erase_if(reading, [](ReadRequest* r) {
        if (!r->done()) return false;
        if (r->state() == ReadState::kFailed) fail(r->error_code(), "expert_file", r->error());
        r->reset();
        return true;
      });
    }
    return double(bytes) / (now() - start);
  }

 private:
  static constexpr int64_t kSlots = 4;

  ExpertFile file_;
  int64_t bytes_;
  std::vector<std::pair<int64_t, int64_t>> records_;
  uint8_t* memory_;
  DirectReader reader_;
  std::mt19937_64 random_{1};
};

}  // namespace

void register_tiers(py::module_& m) {
  m.def("simulate_residency", &simulate, py::arg("policy"), py::arg("quota"), py::arg("num_experts"), py::arg("used"),
        py::arg("lists") = ExpertHistory(), py::arg("wanted") = ExpertHistory());
  py::class_<ExpertReadProbe>(m, "ExpertReadProbe")
      .def(py::init<const std::string&>(), py::arg("path"))
      .def("measure", &ExpertReadProbe::measure, py::arg("num_records"), py::call_guard<py::gil_scoped_release>());
  m.def("uniform_quota", &uniform_quota, py::arg("slots"), py::arg("num_layers"), py::arg("num_experts"));
}

}  // namespace lynx_rt
