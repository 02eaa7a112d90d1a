# bench_parts: the measurements, the most important first. For tests/gpu/run --bench and bench/gpu/run, which source tests/gpu/steps.sh
# before. --quick: fewer shapes and steps, but all of the model's 48 layers.
bench_parts() {
  local here=$root/bench/gpu long steps name ncu
  local engine=$tree/bench/bench_engine ops=$tree/bench/bench_ops few=(${quick:+--quick})
  long=$([[ -n $quick ]] && echo 1 || echo 5)
  steps=$([[ -n $quick ]] && echo 32 || echo 64)
  [[ -n $dry ]] || nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem,power.limit --format=csv >"$work/device.txt" 2>&1

  local batches=$([[ -n $quick ]] && echo 1,16,64 || echo 1,8,16,32,64)
  local selections=$([[ -n $quick ]] && echo topk,lynx || echo topk,lynx,oea:k0=2)
  part bench_engine $((75 * long)) "$engine" "$here/configs/qwen3-30b-a3b" --batch "$batches" --selection "$selections" --steps "$steps" \
    "${few[@]}"
  part bench_engine_no_overlap $((75 * long)) "$engine" "$here/configs/qwen3-30b-a3b" --batch "$batches" --selection "$selections" \
    --steps "$steps" --no-dependent-launch "${few[@]}"
  part bench_engine_4_layers_long $((15 * long)) "$engine" "$here/configs/qwen3-30b-a3b-4-layers" --batch 1,16 --selection topk \
    --context 4096 --steps "$steps" "${few[@]}"
  if [[ -n $quick ]]; then
    part bench_ops 55 "$ops" --quick --only expert_ffn,moe_layer,linear,attention,rows
  else
    part bench_ops 600 "$ops"
  fi
  # Nsight Compute measures occupancy and the stalls of warps, which bench_ops cannot.
  ncu=$(command -v ncu || true)
  if [[ -n $ncu || -n $dry ]]; then
    for name in rows:router_kernel route:route_kernel linear:linear_kernel; do
      part "ncu_${name#*:}" $((15 * long)) "${ncu:-ncu}" --kernel-name "regex:^${name#*:}" --launch-count 8 --section SpeedOfLight \
        --section Occupancy --section LaunchStats --section WarpStateStats --csv "$ops" --quick --only "${name%:*}"
    done
  else
    record ncu null 0 "not on PATH"
  fi
  part baselines $((30 * long)) "$python" "$here/baselines.py" "${few[@]}"
}
