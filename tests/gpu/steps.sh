# For tests/gpu/run and bench/gpu/run: their options, the build, steps with a time budget each, and results that are packed after
# every step, so that a run which is cut off leaves what it had. Environment:
# LYNX_RT_GPU_BUILD_DIR (build/gpu), LYNX_RT_JSON_DIR (folder that holds nlohmann/json.hpp, where no package has it),
# LYNX_RT_CUDA_ARCHITECTURES (that of the GPU present), LYNX_RT_COMMIT (git's), JOBS (all cores), PYTHON (python3),
# LYNX_RT_GPU_SECONDS (of the whole; 590 with --quick, else 3600), LYNX_RT_GPU_PARALLEL (tests at a time; 4).
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
tree=${LYNX_RT_GPU_BUILD_DIR:-$root/build/gpu}
jobs=${JOBS:-$(nproc)}
parallel=${LYNX_RT_GPU_PARALLEL:-4}
python=${PYTHON:-python3}
commit=${LYNX_RT_COMMIT:-$(git -C "$root" describe --always --dirty --exclude '*' 2>/dev/null || echo unknown)}
export LYNX_RT_COMMIT=$commit
quick= bench= dry= problems=0 planned=0

# start_run OUT_DIR [--quick] [--bench] [--dry]. Logs are written to $work, which lies elsewhere.
start_run() {
  [[ $# -ge 1 && $1 != -* ]] || usage
  mkdir -p "$1" && out=$(cd "$1" && pwd) || exit 2
  shift
  for option; do
    case $option in
      --quick) quick=1 ;;
      --bench) bench=1 ;;
      --dry) dry=1 ;;
      *) usage ;;
    esac
  done
  work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT
  total=${LYNX_RT_GPU_SECONDS:-$([[ -n $quick ]] && echo 590 || echo 3600)}
  device=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -n 1 || true)
  summary=$work/summary.jsonl
  : >"$summary"
  : >"$work/summary.txt"
  : >"$work/results.jsonl"
  [[ -z $dry ]] || check_environment
}

left() { echo $((total - SECONDS)); }
seconds_since() { awk -v a="$1" -v b="$(date +%s.%N)" 'BEGIN { printf "%.2f", b - a }'; }

# OUT_DIR gets few files: what comes back from a machine may be limited to a number of them.
pack_results() {
  [[ -z $dry ]] || return 0
  # Tests beside it may be writing their logs, which tar minds.
  tar -czf "$out/.results.tar.gz" -C "$work" . 2>/dev/null
  mv "$out/.results.tar.gz" "$out/results.tar.gz"
  cp "$work/summary.txt" "$summary" "$work/results.jsonl" "$out"
}

# record NAME OK SECONDS NOTE: a line in each summary, written at once, as tests may end at the same time.
record() {
  local shown=FAIL note=${4//[^[:print:]]/ }
  [[ $2 != true ]] || shown=ok
  [[ $2 != null ]] || shown=-
  printf '{"name": "%s", "ok": %s, "seconds": %s, "device": "%s", "commit": "%s", "note": "%s"}\n' \
    "$1" "$2" "$3" "$device" "$commit" "${note//[\"\\]/ }" >>"$summary"
  printf '%-28s %-5s %8s  %s\n' "$1" "$shown" "$3" "$note" >>"$work/summary.txt"
}

# --- dry: prints every step with its budget, and checks that what it names is there or is built

problem() {
  echo "   MISSING: $*"
  problems=$((problems + 1))
}

check_environment() {
  [[ $commit != unknown ]] || problem "LYNX_RT_COMMIT, in a copy without git history"
  [[ -z ${LYNX_RT_JSON_DIR:-} || -f $LYNX_RT_JSON_DIR/nlohmann/json.hpp ]] || problem "$LYNX_RT_JSON_DIR/nlohmann/json.hpp"
  echo "commit $commit, nlohmann/json ${LYNX_RT_JSON_DIR:-from a package of that machine (else set LYNX_RT_JSON_DIR)}"
}

# dry_step NAME BUDGET COMMAND...
dry_step() {
  local name=$1 budget=$2 word
  shift 2
  [[ $name == check-* ]] || planned=$((planned + budget))
  printf '%-28s %4s s  %s\n' "$name" "$budget" "${*//$root\//}"
  for word; do
    case $word in
      "$tree") ;;
      "$tree"/*) grep -qE "\b$(basename "$word")\b" "$root/tests/gpu/CMakeLists.txt" "$root/bench/gpu/CMakeLists.txt" ||
        problem "a target $(basename "$word")" ;;
      "$root"/*) [[ -e $word ]] || problem "$word" ;;
    esac
  done
}

# --- steps

# limited BUDGET COMMAND...: within its budget and what is left of the whole.
limited() {
  local seconds=$1
  shift
  (($(left) > seconds)) || seconds=$(left)
  ((seconds > 0)) || return 125
  timeout "$seconds" "$@"
}

# run_test NAME BUDGET COMMAND...: passes where the command ends with 0 and counted at least one check.
run_test() {
  [[ -z $dry ]] || { dry_step "$@"; return 0; }
  local name=$1 budget=$2 start code=0 note errors
  shift 2
  start=$(date +%s.%N)
  limited "$budget" "$@" >"$work/$name.log" 2>&1 </dev/null || code=$?
  note=$(grep -aE '^test_.*checks, |[0-9]+ passed' "$work/$name.log" | tail -n 1)
  errors=$(grep -aE 'ERROR SUMMARY|RACECHECK SUMMARY' "$work/$name.log" | tail -n 1 | sed 's/^=* //')
  [[ -z $errors ]] || note="$note; $errors"
  case $code in
    0) [[ -n $note && $note != *" 0 checks,"* ]] && record "$name" true "$(seconds_since "$start")" "$note" ||
      record "$name" false "$(seconds_since "$start")" "no checks were counted" ;;
    124) record "$name" false "$(seconds_since "$start")" "stopped after $budget s; $note" ;;
    125) record "$name" null 0 "no time was left" ;;
    *) record "$name" false "$(seconds_since "$start")" "ended with $code: ${note:-$(tail -n 1 "$work/$name.log" | tr -d '\t')}" ;;
  esac
}

run_beside() { # run_test, of which some run at a time; `wait` follows the last
  if [[ -n $dry ]]; then
    dry_step "$@"
    [[ $1 == check-* ]] || planned=$((planned - $2 + ($2 + parallel - 1) / parallel))
    return 0
  fi
  while (($(jobs -rp | wc -l) >= parallel)); do wait -n; done
  run_test "$@" &
}

# part NAME BUDGET COMMAND...: a measurement. Its lines go to results.jsonl, even those before a failure.
part() {
  [[ -z $dry ]] || { dry_step "$@"; return 0; }
  local name=$1 budget=$2 code=0 start
  shift 2
  start=$(date +%s.%N)
  limited "$budget" "$@" >"$work/$name.jsonl" 2>"$work/$name.log" </dev/null || code=$?
  grep -a '^{.*}$' "$work/$name.jsonl" >>"$work/results.jsonl"
  case $code in
    0) record "$name" true "$(seconds_since "$start")" "$(grep -ac '^{' "$work/$name.jsonl") results" ;;
    125) record "$name" null 0 "no time was left" ;;
    *) record "$name" false "$(seconds_since "$start")" "ended with $code: $(tail -n 1 "$work/$name.log")" ;;
  esac
  pack_results
}

# build BUDGET TARGET...: all at once, so that all cores have work to the end.
build() {
  local budget=$1 start code=0
  shift
  if [[ -n $dry ]]; then
    dry_step build "$budget" cmake --build "$tree" --parallel "$jobs" --target "$@"
    for target; do
      grep -qE "add_custom_target\($target " "$root"/{tests,bench}/gpu/CMakeLists.txt || problem "a target $target"
    done
    return 0
  fi
  start=$(date +%s.%N)
  gpu_build "$budget" "$@" || code=$?
  record build "$([[ $code == 0 ]] && echo true || echo false)" "$(seconds_since "$start")" \
    "$([[ $code == 0 ]] || grep -aE 'error|CMake Error|needs ' "$work/build.log" | head -n 1)"
  pack_results
}

gpu_build() {
  local budget=$1 log=$work/build.log
  shift
  for tool in cmake nvcc; do
    command -v $tool >/dev/null || { echo "needs $tool on PATH" | tee "$log" >&2; return 1; }
  done
  {
    # Only what is given: a tree that is configured already keeps its settings.
    limited "$budget" cmake -S "$root/tests/gpu" -B "$tree" \
      $([[ -f $tree/CMakeCache.txt ]] || ! command -v ninja >/dev/null || echo -G Ninja) \
      ${LYNX_RT_JSON_DIR:+"-DLYNX_RT_JSON_DIR=$LYNX_RT_JSON_DIR"} \
      ${LYNX_RT_CUDA_ARCHITECTURES:+"-DLYNX_RT_CUDA_ARCHITECTURES=$LYNX_RT_CUDA_ARCHITECTURES"} &&
      # -k: what can be built is built, so that one broken file does not hide the others' results.
      limited "$budget" cmake --build "$tree" --parallel "$jobs" --target "$@" -- -k $([[ -f $tree/build.ninja ]] && echo 0)
  } >"$log" 2>&1
}

# finish: the table, and 1 where something failed.
finish() {
  if [[ -n $dry ]]; then
    echo "planned: at most $planned s of $total s without the checks under compute-sanitizer; $problems missing"
    ((problems == 0 && planned <= total))
    exit
  fi
  pack_results
  echo "device ${device:-none}, commit $commit, logs in $out/results.tar.gz"
  cat "$work/summary.txt"
  local failed
  failed=$(grep -c '"ok": false' "$summary")
  [[ $failed == 0 ]] || { echo "$failed failed"; exit 1; }
}
