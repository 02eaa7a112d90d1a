// lynx_rt._C_testing: single ops, expert selection and checkpoints on NumPy arrays. It holds its own copy of the C++ core, and is not
// part of a wheel.
#include "bindings.h"
#include "gil.h"

PYBIND11_MODULE(_C_testing, m) {
  m.doc() = "Parts of the C++ core of lynx_rt, for its tests";
  lynx_rt::register_errors(m);
  lynx_rt::register_ops(m);
  lynx_rt::register_attention(m);
  lynx_rt::register_gated_delta(m);
  lynx_rt::register_checkpoint(m);
  lynx_rt::register_select(m);
  lynx_rt::register_tiers(m);
  lynx_rt::register_vision(m);
  lynx_rt::wait_for_calls_at_exit();
}
