// Stacks that one OS thread switches between, with the annotations that the sanitizers need.
#pragma once
#include <cstddef>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if defined(SIMT_TSAN)  // set by the build for the files that are themselves not instrumented
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
void __tsan_read_range(void* address, unsigned long size);
void __tsan_write_range(void* address, unsigned long size);
}
#endif

namespace simt {

// One stack with a suspended computation on it. A default-constructed one is the OS thread's own stack.
class Stack {
 public:
  Stack() = default;
  Stack(const Stack&) = delete;
  Stack& operator=(const Stack&) = delete;

  // Makes the next switch to this stack call entry(), which must not return. A computation suspended on it is forgotten.
  void start(void (*entry)());
  // Ends a computation in the middle: its calls are forgotten, and all its accesses happen before a tsan_acquire(clock).
  void discard(void* clock);
  // Suspends `from`, which is running, and resumes `to`.
  static void change(Stack& from, Stack& to);
  // Must be the first call of entry().
  static void arrive();

 private:
  void allocate();

  char* bottom_ = nullptr;
  size_t bytes_ = 0;
#if defined(__x86_64__)
  void* stack_pointer_ = nullptr;
#else
  ucontext_t context_;
#endif
  void* tsan_fiber_ = nullptr;
  void* fake_stack_ = nullptr;
};

// Declare happens-before edges and accesses to ThreadSanitizer; without it they do nothing.
inline void tsan_release([[maybe_unused]] void* p) {
#if defined(SIMT_TSAN)
  __tsan_release(p);
#endif
}
inline void tsan_acquire([[maybe_unused]] void* p) {
#if defined(SIMT_TSAN)
  __tsan_acquire(p);
#endif
}
inline void tsan_read([[maybe_unused]] const void* p, [[maybe_unused]] size_t bytes) {
#if defined(SIMT_TSAN)
  if (bytes) __tsan_read_range(const_cast<void*>(p), bytes);
#endif
}
inline void tsan_write([[maybe_unused]] void* p, [[maybe_unused]] size_t bytes) {
#if defined(SIMT_TSAN)
  if (bytes) __tsan_write_range(p, bytes);
#endif
}

}  // namespace simt
