// The text form of selection policies, as users write it: parsed, checked and printed.
#pragma once
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "routing/policy.h"

namespace lynx_rt {

// "key=value,key=value", what follows a policy's name. Throws kInvalidArgument for another form and for a key given twice.
struct PolicySetting {
  std::string_view key, value;
};
std::vector<PolicySetting> parse_settings(std::string_view text, const char* field);

// A policy's text, "name:key=value,...": "topk" (also "off", ""), "lynx:alpha=8,beta=4,theta=1", "oea:k0=2", "top1" (=
// top_j:j=1). `file` gets the value of the key of that name ("" = none given), of policies that read a table: sere, alias,
// replay. Throws kInvalidArgument naming `field`, and the unknown policy or key and those that exist.
Selection parse_policy(const std::string& text, std::string* file = nullptr, const char* field = "selection");
std::string to_string(const Selection& selection, const std::string& file = "");  // parse_policy's canonical form

// What all layers of a model do: "POLICY" or "POLICY@LAYERS=POLICY@...", as in "lynx:alpha=4@0-1+7=topk@5=oea:k0=2". LAYERS are
// numbers and ranges of the model's layers (from 0), joined by "+".
struct SelectionPlan {
  struct Part {
    std::vector<std::pair<int, int>> layers;  // ranges with both ends; of the first part empty: all layers that no other names
    Selection selection;
    std::string file;
  };
  std::vector<Part> parts{Part{}};

  const Part& of_layer(int layer) const;  // of the last part that names it
};
SelectionPlan parse_selection(const std::string& text, const char* field = "selection");  // throws as parse_policy()
std::string to_string(const SelectionPlan& plan);

}  // namespace lynx_rt
