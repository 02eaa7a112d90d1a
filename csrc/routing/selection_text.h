// Parses, checks and prints selection policies in the text form that users write.
#pragma once
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "routing/policy.h"

namespace lynx_rt {

// A setting of a policy. parse_settings() parses the text after the policy's name, "key=value,key=value"; it throws
// kInvalidArgument for another form and for a key given twice.
struct PolicySetting {
  std::string_view key, value;
};
std::vector<PolicySetting> parse_settings(std::string_view text, const char* field);

// Parses the text of a policy, "name:key=value,...": "topk" (also "off", ""), "lynx:alpha=8,beta=4,theta=1", "oea:k0=2", "top1"
// (= top_j:j=1), "topk:resident=1". `file` receives the value of the key "file" ("" = not given), which the policies have that read
// a table: sere, alias, replay. `top_k`: experts per token of the model, which lynx's alpha depends on where it is not given; 0 = not
// known, and alpha is then 0, which stands for that. Throws kInvalidArgument naming `field`, and the unknown policy or key and those that
// exist.
Selection parse_policy(const std::string& text, int top_k, std::string* file = nullptr, const char* field = "selection");
std::string to_string(const Selection& selection, const std::string& file = "");  // parse_policy's canonical form

// The policies of all layers of a model: "POLICY" or "POLICY@LAYERS=POLICY@...", as in "lynx:alpha=4@0-1+7=topk@5=oea:k0=2".
// LAYERS are numbers and ranges of the model's layers (from 0), joined by "+".
struct SelectionPlan {
  struct Part {
    std::vector<std::pair<int, int>> layers;  // inclusive ranges; empty in the first part: all layers that no other part names
    Selection selection;
    std::string file;
  };
  std::vector<Part> parts{Part{}};

  const Part& of_layer(int layer) const;  // the last part that names the layer
};
SelectionPlan parse_selection(const std::string& text, int top_k, const char* field = "selection");  // throws as parse_policy()
std::string to_string(const SelectionPlan& plan);

}  // namespace lynx_rt
