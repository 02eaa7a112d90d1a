// A minimal check library: a failed check prints file, line and values, and makes main return 1; the test continues.
#pragma once
#include <atomic>
#include <concepts>
#include <iostream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"

namespace check {

inline std::atomic<int> failures = 0;  // checks may be made in several threads
inline std::atomic<int> checks = 0;

inline std::ostream& report(const char* file, int line) {
  ++failures;
  return std::cerr << file << ":" << line << ": ";
}

template <class T>
void print(std::ostream& out, const T& v) {
  if constexpr (requires { out << v; }) {
    out << v;
  } else {
    out << "<" << sizeof v << " bytes>";
  }
}
template <class T>
void print(std::ostream& out, const std::vector<T>& v) {
  out << "[";
  for (size_t i = 0; i < v.size(); ++i) {
    if (i) out << ", ";
    print(out, T(v[i]));
  }
  out << "]";
}

inline void is_true(bool ok, const char* text, const char* file, int line) {
  ++checks;
  if (!ok) report(file, line) << "expected true: " << text << "\n";
}

template <class A, class B>
bool same(const A& a, const B& b) {
  // Integers of different types are compared by value, so that tests need no casts for literals.
  if constexpr (std::integral<A> && std::integral<B> && !std::same_as<A, bool> && !std::same_as<B, bool>) {
    return std::cmp_equal(+a, +b);  // + because cmp_equal refuses character types
  } else {
    return a == b;
  }
}

template <class A, class B>
void equal(const A& a, const B& b, const char* text, const char* file, int line) {
  ++checks;
  if (same(a, b)) return;
  print(report(file, line) << text << ": got ", a);
  print(std::cerr << ", expected ", b);
  std::cerr << "\n";
}

// Checks that `call` throws Error with this code and field, and with all of `parts` in its message.
template <class Call>
void throws(Call call, lynx_rt::ErrorCode code, const std::string& field, const std::vector<std::string>& parts, const char* file,
            int line) {
  ++checks;
  try {
    call();
  } catch (const lynx_rt::Error& e) {
    if (e.code() != code) report(file, line) << "code " << int(e.code()) << ", expected " << int(code) << "\n";
    if (e.field() != field) report(file, line) << "field '" << e.field() << "', expected '" << field << "'\n";
    for (const std::string& part : parts) {
      if (std::string_view(e.what()).find(part) == std::string_view::npos) {
        report(file, line) << "message lacks '" << part << "': " << e.what() << "\n";
      }
    }
    return;
  }
  report(file, line) << "expected an Error on '" << field << "', nothing was thrown\n";
}

// Returns the value of main.
inline int result(const char* name) {
  std::cerr << name << ": " << checks << " checks, " << failures << " failures\n";
  return failures == 0 ? 0 : 1;
}

}  // namespace check

#define CHECK(condition) check::is_true(bool(condition), #condition, __FILE__, __LINE__)
#define CHECK_EQ(got, expected) check::equal(got, expected, #got, __FILE__, __LINE__)
// The last argument is a braced list of texts: CHECK_THROWS(f(1), ErrorCode::kNotFound, "path", {"folder", "missing"}).
#define CHECK_THROWS(expression, code, field, ...) \
  check::throws([&] { (void)(expression); }, code, field, __VA_ARGS__, __FILE__, __LINE__)
