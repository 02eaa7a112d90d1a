// The index of an expert file as bytes. Private to the expert file.
#pragma once
#include <cstdint>
#include <cstring>
#include <string>

#include "tiers/expert_record.h"

namespace lynx_rt {

// Appends values to a text, as ExpertFile reads them.
class IndexWriter {
 public:
  template <class T>
  void number(T value) {
    bytes.append(reinterpret_cast<const char*>(&value), sizeof value);
  }
  void text(const std::string& value) {
    number(int64_t(value.size()));
    bytes += value;
  }
  // A layout: its views without what follows from the rest.
  void layout(const RecordLayout& layout) {
    for (const WeightView* v : layout.shape().views()) {
      number(uint8_t(v->format)), number(uint8_t(v->dtype)), number(uint8_t(v->blocks.code));
      number(uint8_t(v->blocks.scale_type)), number(uint8_t(v->blocks.zeros != nullptr));
      number(v->rows), number(v->cols), number(v->blocks.group);
      number(v->blocks.scale_rows), number(v->blocks.first_scale_row), number(uint8_t(v->blocks.product_dtype));
    }
  }

  std::string bytes;
};

}  // namespace lynx_rt
