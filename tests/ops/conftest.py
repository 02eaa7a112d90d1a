"""Parameters of the op tests: every instruction set of this CPU, and every compute dtype, for ops that round to it."""

import pytest
from isas import ISAS

from lynx_rt import _C_testing

DTYPES = ["float32", "bfloat16", "float16"]


@pytest.fixture(params=ISAS)
def isa(request):
    return request.param


@pytest.fixture(params=DTYPES)
def dtype(request):
    """The compute dtype."""
    return request.param


@pytest.fixture(params=DTYPES)
def weight_dtype(request):
    return request.param


@pytest.fixture
def float_backend(isa):
    """Backend for ops that do not depend on the compute dtype; test_elementwise.py lists them, and tests that they do not."""
    return _C_testing.Backend(dtype="float32", isa=isa, num_threads=2)


@pytest.fixture
def backend(isa, dtype):
    return _C_testing.Backend(dtype=dtype, isa=isa, num_threads=2)
