# Sourced by the scripts beside it: puts lynx_rt into a virtual environment. Needs g++ and Python >= 3.10 with headers; on Debian
# and Ubuntu, as root, what is missing is installed. Everything else comes as wheels. Progress goes to standard error.
# prepare [KEY...]   KEY: a list of requirements in pyproject.toml that is wanted beside the package's own, such as
#                    project.optional-dependencies.test. Sets venv and build_dir. LYNX_RT_VENV: the environment (default .venv in the
#                    repository).

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${LYNX_RT_VENV:-$root/.venv}

missing_packages() {
  command -v g++ >/dev/null || echo g++
  command -v python3 >/dev/null || { echo python3 python3-venv python3-dev; return; }
  python3 -c 'import ensurepip, venv' 2>/dev/null || echo python3-venv
  python3 -c 'import os, sysconfig as s; assert os.path.exists(s.get_path("include") + "/Python.h")' 2>/dev/null || echo python3-dev
}

prepare() {
  local packages
  packages=$(missing_packages | tr '\n' ' ')
  if [[ -n $packages ]]; then
    if [[ $(id -u) != 0 ]] || ! command -v apt-get >/dev/null; then
      echo "missing: $packages(names of Debian packages); install them, for example: sudo apt-get install $packages" >&2
      exit 1
    fi
    echo "installing $packages" >&2
    apt-get update -qq >&2
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages >&2
  fi
  python3 -c 'import sys; sys.exit("Python 3.10 or newer is needed, this is " + sys.version) if sys.version_info < (3, 10) else 0'

  [[ -x $venv/bin/pip ]] || python3 -m venv "$venv"
  local python=$venv/bin/python
  echo "building lynx_rt into $venv (about two minutes the first time)" >&2
  fetch build-system.requires
  # LYNX_RT_CUDA=on without an nvcc: the compiler's wheels as well.
  local requirements
  requirements=$(PYTHONPATH=$root/tools "$python" -c 'import build_backend; print("\n".join(build_backend.cuda_requirements()))')
  if [[ -n $requirements ]]; then
    mapfile -t requirements <<<"$requirements"
    "$python" -m pip install --quiet --disable-pip-version-check "${requirements[@]}" >&2
  fi
  # Without isolation, into a kept folder: a second run compiles only what changed. What is needed to run is fetched meanwhile.
  build_dir=$root/build/$("$python" -c 'import sys; print(sys.implementation.cache_tag)')
  rm -rf "$root"/build/lib*  # setuptools would pack modules that exist no more
  fetch project.dependencies "$@" &
  local fetching=$! wheels
  wheels=$(mktemp -d)
  LYNX_RT_BUILD_DIR=$build_dir PATH=$venv/bin:$PATH \
    "$python" -m pip wheel --quiet --disable-pip-version-check --no-build-isolation --no-deps -w "$wheels" "$root" >&2
  wait "$fetching"
  "$python" -m pip install --quiet --disable-pip-version-check --no-deps --force-reinstall "$wheels"/*.whl >&2
  rm -r "$wheels"
}

# fetch KEY...: installs the requirements that pyproject.toml lists under these keys.
fetch() {
  local requirements
  requirements=$("$venv/bin/python" - "$root/pyproject.toml" "$@" <<'PY'
import functools, sys
try:
    import tomllib
except ModuleNotFoundError:
    from pip._vendor import tomli as tomllib
project = tomllib.load(open(sys.argv[1], "rb"))
for key in sys.argv[2:]:
    print(*functools.reduce(dict.__getitem__, key.split("."), project), sep="\n")
PY
  )
  mapfile -t requirements <<<"$requirements"
  # Python compiles what is imported. pip would compile all files, which takes 45 s of CPU time for torch, transformers and the like.
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile "${requirements[@]}" >&2
}
