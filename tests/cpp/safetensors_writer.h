// Writes safetensors files for tests of their readers.
#pragma once
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"

using lynx_rt::str_cat;

struct Tensor {
  std::string name;
  std::string dtype;
  std::vector<int64_t> shape;
  std::string data;
};

// Returns a tensor of consecutive bytes 0, 1, 2, ..., so that a wrong offset shows.
inline Tensor tensor(const std::string& name, const std::string& dtype, std::vector<int64_t> shape) {
  int64_t bytes = dtype == "F32" || dtype == "I32"                       ? 4
                  : dtype == "I64"                                       ? 8
                  : dtype == "U8" || dtype == "I8" || dtype == "F8_E4M3" ? 1
                                                                         : 2;
  for (const int64_t dim : shape) bytes *= dim;
  std::string data;
  for (int64_t i = 0; i < bytes; ++i) data.push_back(char(i));
  return {name, dtype, std::move(shape), data};
}

// Returns the bytes of a file with the tensors in the given order. `padding`: spaces after the header, which shift the data.
inline std::string safetensors(const std::vector<Tensor>& tensors, size_t padding = 0) {
  std::string header = "{", data;
  for (const Tensor& t : tensors) {
    header += str_cat(header.size() > 1 ? "," : "", "\"", t.name, "\":{\"dtype\":\"", t.dtype, "\",\"shape\":", t.shape,
                      ",\"data_offsets\":[", data.size(), ",", data.size() + t.data.size(), "]}");
    data += t.data;
  }
  header += "}";
  while (header.size() % 8) header += " ";  // aligns the data, as other writers do
  header.append(padding, ' ');
  std::string out(8, '\0');
  const uint64_t length = header.size();
  std::memcpy(out.data(), &length, sizeof length);
  return out + header + data;
}
