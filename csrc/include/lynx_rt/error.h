// The one exception type of the library. Thread-safety: immutable after construction.
#pragma once
#include <stdexcept>
#include <string>
#include <utility>

#include "lynx_rt/export.h"

namespace lynx_rt {

enum class ErrorCode {
  kInvalidArgument,  // a value passed by the caller is out of range, malformed or of the wrong shape
  kUnsupported,      // valid, but this build or version cannot do it
  kNotFound,         // a file, folder or request does not exist
  kCorruptFile,      // a checkpoint file or config contradicts itself or its format
  kOutOfMemory,      // memory does not suffice; the text says how much is needed and what would make it fit
  kQueueFull,        // the engine's request queue is at its limit
  kClosed,           // the engine has been closed
  kDevice,           // the device or its driver failed
  kInternal,         // a broken invariant of this library: a bug
};

// what() says what was expected and what was found. field() names the argument, key, tensor or file at fault
// ("temperature", "model.layers.0.mlp.gate.weight"), empty where there is none.
class LYNX_RT_API Error : public std::runtime_error {
 public:
  Error(ErrorCode code, std::string field, const std::string& text)
      : std::runtime_error(text), code_(code), field_(std::move(field)) {}
  ErrorCode code() const { return code_; }
  const std::string& field() const { return field_; }

 private:
  ErrorCode code_;
  std::string field_;
};

}  // namespace lynx_rt
