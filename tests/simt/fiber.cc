#include "fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <new>

namespace simt {

namespace {

constexpr size_t kStackBytes = 256 * 1024;  // address space; only touched pages cost memory
constexpr size_t kGuardBytes = 4096;

}  // namespace

#if defined(__x86_64__)
// simt_change(save, load) pushes the callee-saved registers on the old stack and pops those of the new one.
extern "C" void simt_change(void** save, void* load);
asm(R"(
.text
.globl simt_change
.hidden simt_change
.type simt_change, @function
simt_change:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size simt_change, .-simt_change
)");
#endif

void Stack::allocate() {
  void* p = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) throw std::bad_alloc();
  mprotect(p, kGuardBytes, PROT_NONE);
  bottom_ = static_cast<char*>(p) + kGuardBytes;
  bytes_ = kStackBytes - kGuardBytes;
}

void Stack::discard([[maybe_unused]] void* clock) {
#if defined(SIMT_TSAN)
  void* me = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(tsan_fiber_, 1);
  __tsan_release(clock);
  __tsan_switch_to_fiber(me, 1);
  __tsan_destroy_fiber(tsan_fiber_);
  tsan_fiber_ = nullptr;
#endif
}

void Stack::start(void (*entry)()) {
  if (!bottom_) allocate();
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(bottom_, bytes_);  // abandoned frames may have left poison
  fake_stack_ = nullptr;
#endif
#if defined(SIMT_TSAN)
  if (!tsan_fiber_) tsan_fiber_ = __tsan_create_fiber(0);
#endif
#if defined(__x86_64__)
  uintptr_t* top = reinterpret_cast<uintptr_t*>(bottom_ + bytes_);  // 16-byte aligned: mmap and sizes are
  *--top = 0;                                                       // entry() sees the alignment of a called function
  *--top = reinterpret_cast<uintptr_t>(entry);
  for (int saved = 0; saved < 6; ++saved) *--top = 0;
  stack_pointer_ = top;
#else
  getcontext(&context_);
  context_.uc_stack.ss_sp = bottom_;
  context_.uc_stack.ss_size = bytes_;
  context_.uc_link = nullptr;
  makecontext(&context_, entry, 0);
#endif
}

#if defined(__SANITIZE_ADDRESS__)
namespace {
// The OS thread's own stack, which is known from the first switch away from it.
const void* main_bottom = nullptr;
size_t main_bytes = 0;
}  // namespace
#endif

void Stack::arrive() {
#if defined(__SANITIZE_ADDRESS__)
  const void* bottom;
  size_t bytes;
  __sanitizer_finish_switch_fiber(nullptr, &bottom, &bytes);
  if (!main_bottom) {  // the very first switch comes from the OS thread's stack
    main_bottom = bottom;
    main_bytes = bytes;
  }
#endif
}

void Stack::change(Stack& from, Stack& to) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&from.fake_stack_, to.bottom_ ? to.bottom_ : main_bottom, to.bottom_ ? to.bytes_ : main_bytes);
#endif
#if defined(SIMT_TSAN)
  if (!from.tsan_fiber_) from.tsan_fiber_ = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(to.tsan_fiber_, 1);  // 1: the switch orders nothing
#endif
#if defined(__x86_64__)
  simt_change(&from.stack_pointer_, to.stack_pointer_);
#else
  swapcontext(&from.context_, &to.context_);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(from.fake_stack_, nullptr, nullptr);
#endif
}

}  // namespace simt
