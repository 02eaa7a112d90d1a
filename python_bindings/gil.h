// The GIL, let go of and taken, on threads that Python may end.
//
// Once the interpreter exits, no other thread gets the GIL again. Up to 3.13, Python ends a thread that asks for it, by unwinding its
// stack: through destructors that must not throw, which aborts the process, or that need the GIL. Here, as in Python 3.14 itself,
// such a thread is held for ever instead. pybind11's own gil_scoped_release and gil_scoped_acquire do not do that.
#pragma once
#include <pybind11/pybind11.h>
#include <unistd.h>

#include <cxxabi.h>

namespace lynx_rt {

// Makes a call in which Python may end this thread. It may own nothing whose destructor needs the GIL.
template <class Call>
void hold_if_ended(Call&& call) {
#ifdef __GLIBCXX__
  try {
    call();
  } catch (abi::__forced_unwind&) {
    for (;;) pause();
  }
#else
  call();
#endif
}

// A block without the GIL, for work that touches no Python object.
class ReleaseGil {
 public:
  ReleaseGil();
  ~ReleaseGil();
  ReleaseGil(const ReleaseGil&) = delete;
  ReleaseGil& operator=(const ReleaseGil&) = delete;

 private:
  PyThreadState* state_;
};

// A block with the GIL, on any thread, whether it has the GIL or not.
class AcquireGil {
 public:
  AcquireGil();
  ~AcquireGil();
  AcquireGil(const AcquireGil&) = delete;
  AcquireGil& operator=(const AcquireGil&) = delete;

 private:
  const bool had_it_;
  PyGILState_STATE state_;
};

// Has the interpreter, at the end of its exit, wait for the calls that were made without the GIL: what follows, the destruction of
// the process's static objects, must not happen beside them. Not longer than half a second.
void wait_for_calls_at_exit();

}  // namespace lynx_rt
