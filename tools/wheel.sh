#!/usr/bin/env bash
# Builds a source distribution and a wheel into dist/, and names the wheel for the systems that it runs on where auditwheel can tell:
#   tools/wheel.sh [FOLDER]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/prepare.sh"
out=$(realpath -m "${1:-$root/dist}")
[[ -x $venv/bin/pip ]] || python3 -m venv "$venv"
fetch project.optional-dependencies.wheel
cd "$root"
"$venv/bin/python" -m build --sdist --wheel --outdir "$out" .
for wheel in "$out"/*-linux_*.whl; do
  [[ -e $wheel ]] || continue
  PATH=$venv/bin:$PATH "$venv/bin/python" -m auditwheel repair --wheel-dir "$out" "$wheel" && rm "$wheel"
done
ls "$out"
