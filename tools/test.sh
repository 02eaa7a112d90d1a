#!/usr/bin/env bash
# Builds and installs lynx_rt with what its tests need, and runs them against the installed package:
#   tools/test.sh [pytest options]          the fast tier: a few minutes
#   tools/test.sh --all [pytest options]    everything (pytest -m ""): sanitizers, the emulated CUDA kernels, nvcc, ...
# LYNX_RT_TEST_JOBS: processes that test side by side (default: the cores, 4 at most).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/prepare.sh"
arguments=()
requirements=(project.optional-dependencies.test)
for argument; do
  if [[ $argument == --all ]]; then
    arguments+=(-m "")
    requirements+=(project.optional-dependencies.test-serve)
  else
    arguments+=("$argument")
  fi
done
export LYNX_RT_TESTING=1  # lynx_rt._C_testing as well, which is not part of a plain install
prepare "${requirements[@]}"
cd "$root"
# Safe path: neither pytest nor the processes that tests start take ./lynx_rt, which has no compiled module, for the package.
export PYTHONSAFEPATH=1 PATH=$venv/bin:$PATH
export LYNX_RT_TEST_BUILD_DIR=${LYNX_RT_TEST_BUILD_DIR:-$build_dir}  # its objects go into the C++ tests as well
jobs=${LYNX_RT_TEST_JOBS:-$(nproc)}
# Without a reorder, by which files of few tests would come last: tests/conftest.py puts the longest files first.
exec "$venv/bin/pytest" -n "$((jobs < 4 ? jobs : 4))" --dist loadfile --no-loadscope-reorder "${arguments[@]}"
