#!/usr/bin/env bash
# Checks what no test runs: types of the Python package (mypy --strict), ruff's rules and format, clang-format.
#   tools/lint.sh [--fix]    --fix writes what ruff and clang-format would have, instead of saying so
# The versions are those of the extra "lint" in pyproject.toml, put into the environment LYNX_RT_VENV (default .venv).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/prepare.sh"
cd "$root"
fix=0
case ${1:-} in
  "") ;;
  --fix) fix=1 ;;
  *) echo "usage: tools/lint.sh [--fix]" >&2; exit 2 ;;
esac

[[ -x $venv/bin/pip ]] || python3 -m venv "$venv"
fetch project.optional-dependencies.lint

# The header of the first release stays as it was.
mapfile -t cpp < <(git ls-files '*.h' '*.cc' '*.cu' '*.cuh' '*.c' ':!tests/cpp/abi_0_1')
failed=0
check() {
  echo "-- $1"
  shift
  "$@" || failed=1
}
if [[ $fix == 1 ]]; then
  check "ruff check" "$venv/bin/ruff" check --fix .
  check "ruff format" "$venv/bin/ruff" format .
  check "clang-format" "$venv/bin/clang-format" -i "${cpp[@]}"
else
  check "ruff check" "$venv/bin/ruff" check .
  check "ruff format" "$venv/bin/ruff" format --check .
  check "clang-format" "$venv/bin/clang-format" --dry-run -Werror "${cpp[@]}"
fi
check "mypy" "$venv/bin/mypy"
exit "$failed"
