#!/usr/bin/env bash
# Builds lynx_rt and generates text with the model that comes with it:
#   tools/quickstart.sh                          a sum
#   tools/quickstart.sh -p "Q: ..." [options]    as `lynx-rt generate`
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/prepare.sh"
prepare
[[ $# -gt 0 ]] || set -- -p $'Q: 12 times 22 = ?\nA:'
exec "$venv/bin/lynx-rt" generate "$@"
