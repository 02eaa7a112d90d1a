#!/usr/bin/env bash
# Builds the API reference from docstrings and public headers, as HTML:
#   tools/api_reference.sh [FOLDER]    default: build/reference
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/prepare.sh"
out=$(realpath -m "${1:-$root/build/reference}")
prepare project.optional-dependencies.docs
"$venv/bin/python" "$root/tools/api_reference.py" "$out"
echo "$out/index.html"
