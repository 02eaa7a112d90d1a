# For tests/gpu/run and bench/gpu/run: gpu_build TARGET LOG builds it in $tree; $commit is what the results name.
# Environment: LYNX_RT_GPU_BUILD_DIR (build/gpu), LYNX_RT_JSON_DIR (folder that holds nlohmann/json.hpp, where no package has it),
# LYNX_RT_CUDA_ARCHITECTURES (that of the GPU present), LYNX_RT_COMMIT (git's), JOBS (all cores).
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
tree=${LYNX_RT_GPU_BUILD_DIR:-$root/build/gpu}
jobs=${JOBS:-$(nproc)}
commit=${LYNX_RT_COMMIT:-$(git -C "$root" describe --always --dirty --exclude '*' 2>/dev/null || echo unknown)}
export LYNX_RT_COMMIT=$commit

gpu_build() {
  local target=$1 log=$2
  for tool in cmake nvcc; do
    command -v $tool >/dev/null || { echo "needs $tool on PATH" | tee "$log" >&2; return 1; }
  done
  {
    # Only what is given: a tree that is configured already keeps its settings.
    cmake -S "$root/tests/gpu" -B "$tree" \
      $([[ -f $tree/CMakeCache.txt ]] || ! command -v ninja >/dev/null || echo -G Ninja) \
      ${LYNX_RT_JSON_DIR:+"-DLYNX_RT_JSON_DIR=$LYNX_RT_JSON_DIR"} \
      ${LYNX_RT_CUDA_ARCHITECTURES:+"-DLYNX_RT_CUDA_ARCHITECTURES=$LYNX_RT_CUDA_ARCHITECTURES"} &&
      # -k: what can be built is built, so that one broken file does not hide the others' results.
      cmake --build "$tree" --parallel "$jobs" --target "$target" -- -k $([[ -f $tree/build.ninja ]] && echo 0)
  } >"$log" 2>&1
}

device_name() { nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -n 1 || true; }
