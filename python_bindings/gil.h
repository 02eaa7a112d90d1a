// Releasing and acquiring the GIL on threads that Python may end.
//
// Once the interpreter exits, no other thread gets the GIL again. Up to 3.13, Python ends a thread that asks for it by unwinding
// its stack. The unwinding passes destructors that must not throw, which aborts the process, and destructors that need the GIL.
// The code here holds such a thread for ever instead, as Python 3.14 does; pybind11's gil_scoped_release and gil_scoped_acquire
// do not.
#pragma once
#include <pybind11/pybind11.h>
#include <unistd.h>

#include <cxxabi.h>

namespace lynx_rt {

// Makes a call in which Python may end this thread; then the thread is held for ever. `call` must own nothing whose destructor
// needs the GIL.
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

// Releases the GIL for a scope, for work that touches no Python object.
class ReleaseGil {
 public:
  ReleaseGil();
  ~ReleaseGil();
  ReleaseGil(const ReleaseGil&) = delete;
  ReleaseGil& operator=(const ReleaseGil&) = delete;

 private:
  PyThreadState* state_;
};

// Acquires the GIL for a scope, on any thread, whether it has the GIL already or not.
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

// Imports NumPy before the first array is made, because pybind11 would import it where the thread must not end. Throws what the
// import raised.
void import_numpy();

// Makes the interpreter wait, at the end of its exit and for at most half a second, for the calls that run without the GIL. The
// process's static objects are destroyed next, which must not happen during those calls.
void wait_for_calls_at_exit();

}  // namespace lynx_rt
