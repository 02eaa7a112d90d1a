// What is wrong with a checkpoint, collected so that one error shows all of it.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "base/error.h"
#include "checkpoint/json.h"
#include "checkpoint/safetensors.h"

namespace lynx_rt {

class WeightProblems {
 public:
  void add_missing(const std::string& name) { add(missing_, name, quote(name)); }
  void add_unexpected(const std::string& name) { add(unexpected_, name, quote(name)); }
  void add_wrong_shape(const std::string& name, const std::string& expected, const TensorInfo& found) {
    add(wrong_shape_, name, str_cat(quote(name), " (expected ", expected, ", got ", found.shape, ")"));
  }
  void add_wrong_dtype(const std::string& name, const std::string& expected, const TensorInfo& found) {
    add(wrong_dtype_, name, str_cat(quote(name), " (expected ", expected, ", got ", found.dtype, ")"));
  }
  // Adds a wrong value in a small tensor, such as an index, or a contradiction between config and file.
  void add_contradiction(const std::string& name, const std::string& text) {
    add(contradictions_, name, str_cat(quote(name), " (", text, ")"));
  }

  // Throws kCorruptFile where anything was added; the field is the first tensor added.
  void raise(const Checkpoint& checkpoint) const {
    std::string text;
    for (const Kind* kind : {&missing_, &unexpected_, &wrong_shape_, &wrong_dtype_, &contradictions_}) {
      if (kind->count == 0) continue;
      text += str_cat(text.empty() ? "" : "; ", kind->count, " ", kind->title, ": ", kind->listed);
      if (kind->count > kMaxListed) text += str_cat(" and ", kind->count - kMaxListed, " more");
    }
    if (text.empty()) return;
    const std::string where = checkpoint.files().empty() ? "checkpoint" : checkpoint.files()[0].path();
    fail(ErrorCode::kCorruptFile, first_, where, ": does not fit the model: ", text);
  }

 private:
  static constexpr size_t kMaxListed = 10;
  struct Kind {
    const char* title;
    size_t count = 0;
    std::string listed;
  };
  void add(Kind& kind, const std::string& name, const std::string& text) {
    if (first_.empty()) first_ = name;
    if (++kind.count > kMaxListed) return;
    kind.listed += kind.listed.empty() ? text : ", " + text;
  }

  Kind missing_{"missing", 0, {}};
  Kind unexpected_{"unexpected", 0, {}};
  Kind wrong_shape_{"of the wrong shape", 0, {}};
  Kind wrong_dtype_{"of the wrong dtype", 0, {}};
  Kind contradictions_{"contradictory", 0, {}};
  std::string first_;
};

}  // namespace lynx_rt
