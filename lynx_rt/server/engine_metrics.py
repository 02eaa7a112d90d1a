"""The engine's statistics as metrics: gauges, and counters that a reset_stats() does not lower."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lynx_rt.engine.outputs import EngineStats, LayerStats
from lynx_rt.errors import EngineClosedError
from lynx_rt.server.metric_names import ENGINE, STEP_PHASES

if TYPE_CHECKING:
    from lynx_rt.engine.engine import Engine

_LOG = logging.getLogger(__name__)
_READ_TIMEOUT_S = 0.2
_MAX_LAYERS = 64  # more have no series of their own unless asked for
_PHASE_OF_OP = {
    **dict.fromkeys(("attention", "qkv_post", "mla_post"), "attention"),
    **dict.fromkeys(("router", "route"), "router"),
    **dict.fromkeys(("embed", "linear", "head_linear", "mlp", "logits"), "dense"),
    "expert_ffn": "experts",
}

_Key = tuple[str, str]  # name of a counter, value of its label ("" = it has none)
_SLO_KEY = ("lynx:slo_steps_over_target_total", "")


@dataclass(frozen=True)
class StepChange:
    """What one step added to the statistics, and the policy after it."""

    tokens: int  # prompts that it finished, and generated tokens
    decode_only: bool
    seconds: float
    rows: int
    experts_per_layer: float | None  # mean over the MoE layers; None without such layers
    policy: str


class EngineMetrics:
    """A collector for prometheus_client over `engine.stats()`. Thread-safe.

    Reading statistics waits for a step in progress. A scrape gives the statistics before that step if it takes longer than 0.2 s.
    per_layer: None = one series per MoE layer for models of up to 64 of them; else their sum as layer="all".
    """

    def __init__(self, engine: Engine, labels: dict[str, str], per_layer: bool | None = None) -> None:
        from prometheus_client import Metric as Family

        self._family = Family
        self._engine = engine
        self._labels = labels
        self._reading = threading.Lock()  # held until statistics are noted, so that they come in order
        self._counting = threading.Lock()  # guards _base, _totals, _stats and _policy
        self._reader: threading.Thread | None = None
        self._stats = engine.stats()
        self._stepped = engine.step_sums()
        self._policy = engine.expert_selection
        self._per_layer = len(self._stats.layers) <= _MAX_LAYERS if per_layer is None else per_layer
        self._base: dict[_Key, float] = {}  # sums up to the last reset_stats()
        self._totals: dict[_Key, float] = {}  # as the last scrape gave them
        self._failed = False
        self._cache_labels = self._describe_cache()

    def read(self) -> None:
        """Reads the statistics now. Waits for a step in progress."""
        with self._reading:
            before, after = self._stats, self._engine.stats()
            policy = self._engine.expert_selection
            restarted = (
                self._counters(before)
                if _was_reset(before, after)
                else _restarted_slo(before, after, policy != self._policy)
            )
            with self._counting:
                for key, value in restarted.items():
                    self._base[key] = self._base.get(key, 0.0) + value
                self._stats, self._policy = after, policy

    def read_step(self) -> StepChange | None:
        """Returns what the last step added, None if not exactly one step was made since the last call. Called after each step."""
        before, after = self._stepped, self._engine.step_sums()
        self._stepped = after
        if after.steps - before.steps != 1:
            return None
        layer_steps = after.layer_steps - before.layer_steps
        return StepChange(
            tokens=after.tokens - before.tokens,
            decode_only=after.decode_steps > before.decode_steps,
            seconds=after.seconds - before.seconds,
            rows=after.decode_rows - before.decode_rows,
            experts_per_layer=(after.active - before.active) / layer_steps if layer_steps else None,
            policy=after.policy,
        )

    def refresh(self) -> None:
        """Reads the statistics in another thread and waits at most 0.2 s for it. Raises nothing."""
        reader = self._reader
        if reader is None or not reader.is_alive():
            reader = threading.Thread(target=self._try_read, name="lynx_rt-stats", daemon=True)
            self._reader = reader
            reader.start()
        reader.join(_READ_TIMEOUT_S)

    def collect(self) -> Iterator[Any]:
        """Yields the metrics of metric_names.ENGINE, for prometheus_client."""
        with self._counting:
            values = self._gauges()
            for key, value in self._counters(self._stats).items():
                # A rolled back token lowers a sum, and a counter must never fall.
                self._totals[key] = max(self._totals.get(key, 0.0), self._base.get(key, 0.0) + value)
            totals = list(self._totals.items())
        for metric in ENGINE:
            counts = metric.kind == "counter"
            family = self._family(
                metric.name.removesuffix("_total") if counts else metric.name, metric.help, metric.kind
            )
            own = metric.labels[len(self._labels) :]
            samples = (
                [(dict.fromkeys(own, value), total) for (name, value), total in totals if name == metric.name]
                if counts
                else values.get(metric.name, [])
            )
            for labels, value in samples:
                family.add_sample(metric.name, {**self._labels, **labels}, value)
            yield family

    def describe(self) -> list[Any]:
        """Returns no metrics, so that registering does not read the engine."""
        return []

    def _try_read(self) -> None:
        try:
            self.read()
        except EngineClosedError:
            pass  # the last statistics stay
        except Exception:
            if not self._failed:
                self._failed = True
                _LOG.exception("the engine's statistics cannot be read; /metrics goes on with the last ones")

    def _gauges(self) -> dict[str, list[tuple[dict[str, str], float]]]:
        stats = self._stats
        values: dict[str, list[tuple[dict[str, str], float]]] = {
            "vllm:num_requests_running": [({}, stats.num_running)],
            "vllm:num_requests_waiting": [({}, stats.num_waiting)],
            "vllm:num_requests_waiting_by_reason": [
                ({"reason": "capacity"}, stats.num_waiting),
                ({"reason": "deferred"}, 0),
            ],
            "vllm:kv_cache_usage_perc": [({}, stats.kv_usage)],
            "vllm:cache_config_info": [(self._cache_labels, 1)],
            "lynx:policy_info": [({"policy": self._policy}, 1)],
            "lynx:num_waiting_tokens": [({}, stats.num_waiting_tokens)],
            "lynx:encoder_cache_bytes": [({}, stats.encoder_cache_bytes)],
            "lynx:engine_last_step_timestamp_seconds": [({}, _unix_time(self._engine.last_step_time))],
            "lynx:engine_stalled_seconds": [({}, self._engine.stalled_seconds)],
        }
        if stats.slo is not None:
            values["lynx:slo_level"] = [({}, stats.slo.level)]
            values["lynx:slo_target_seconds"] = [({}, stats.slo.target_seconds)]
        if stats.tier is not None:
            values["lynx:tier_resident_experts"] = [({}, stats.tier.resident)]
        if (memory := anonymous_memory()) is not None:
            values["lynx:anonymous_memory_bytes"] = [({}, memory)]
        return values

    def _counters(self, stats: EngineStats) -> dict[_Key, float]:
        values: dict[_Key, float] = {
            ("vllm:prompt_tokens_total", ""): stats.prompt_tokens,
            ("vllm:prompt_tokens_by_source_total", "local_compute"): stats.prompt_tokens - stats.cached_prompt_tokens,
            ("vllm:prompt_tokens_by_source_total", "local_cache_hit"): stats.cached_prompt_tokens,
            ("vllm:prompt_tokens_cached_total", ""): stats.cached_prompt_tokens,
            ("vllm:generation_tokens_total", ""): stats.generation_tokens,
            ("vllm:prefix_cache_queries_total", ""): stats.prompt_tokens,
            ("vllm:prefix_cache_hits_total", ""): stats.cached_prompt_tokens,
            ("vllm:num_preemptions_total", ""): stats.preemptions,
            ("lynx:steps_total", "decode_only"): stats.decode_steps,
            ("lynx:steps_total", "mixed"): stats.steps - stats.decode_steps,
            ("lynx:decode_rows_total", "selected"): stats.decode_rows_selected,
            ("lynx:decode_rows_total", "exact"): stats.decode_rows_exact,
            ("lynx:decode_rows_total", "topk"): stats.decode_rows
            - stats.decode_rows_selected
            - stats.decode_rows_exact,
            ("lynx:decode_rows_total", "mixed_step"): stats.decode_rows_mixed,
            ("lynx:bytes_read_total", "experts"): stats.bytes_read_experts,
            ("lynx:bytes_read_total", "dense"): stats.bytes_read_dense,
            ("lynx:bytes_read_total", "kv"): stats.bytes_read_kv,
            ("lynx:images_total", ""): stats.images,
            ("lynx:image_outputs_total", "encoded"): stats.images_encoded,
            ("lynx:image_outputs_total", "cached"): stats.images_cached,
            ("lynx:encoder_seconds_total", ""): stats.encoder_seconds,
        }
        if stats.slo is not None:
            values[_SLO_KEY] = stats.slo.steps_over_target
        if stats.tier is not None:
            values |= {
                ("lynx:tier_experts_total", "hit"): stats.tier.hits,
                ("lynx:tier_experts_total", "miss"): stats.tier.misses,
                ("lynx:tier_bytes_read_total", ""): stats.tier.bytes_read,
                ("lynx:tier_failed_reads_total", ""): stats.tier.failed_reads,
                ("lynx:tier_wait_seconds_total", ""): stats.tier.wait_seconds,
            }
        seconds = dict.fromkeys(STEP_PHASES, 0.0)
        for op in stats.ops:
            if phase := _PHASE_OF_OP.get(op.name):
                seconds[phase] += op.seconds
        seconds["sampling"] = stats.sampling_seconds
        seconds["other"] = max(0.0, stats.step_seconds - sum(seconds.values()))
        values |= {("lynx:step_seconds_total", phase): value for phase, value in seconds.items()}
        for layer in stats.layers:
            name = str(layer.layer) if self._per_layer else "all"
            for key, value in _layer_counters(layer, name):
                values[key] = values.get(key, 0.0) + value
        return values

    def _describe_cache(self) -> dict[str, str]:
        info, blocks = self._engine.model_config, self._stats.kv_blocks_total
        per_token = info["kv_bytes_per_token"]
        block_size = info["kv_bytes"] // (blocks * per_token) if blocks and per_token else 0
        return {"block_size": str(block_size), "num_gpu_blocks": str(blocks)}


def anonymous_memory() -> int | None:
    """Returns the bytes of anonymous memory of this process, in RAM and swap; None where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    kilobytes = [int(line.split()[1]) for line in lines if line.startswith(("RssAnon:", "VmSwap:"))]
    return sum(kilobytes) * 1024 if kilobytes else None


def _unix_time(steady: float) -> float:
    """Converts a time of `time.monotonic()`; 0 stays 0."""
    return time.time() - time.monotonic() + steady if steady else 0.0


def _layer_counters(layer: LayerStats, name: str) -> list[tuple[_Key, float]]:
    return [
        (("lynx:moe_layer_steps_total", name), layer.steps),
        (("lynx:moe_rows_total", name), layer.rows),
        (("lynx:moe_experts_read_total", name), layer.active),
        (("lynx:moe_experts_union_before_total", name), layer.union_before),
        (("lynx:moe_remapped_pairs_total", name), layer.remapped_pairs),
        (("lynx:moe_retained_mass_total", name), layer.retained_mass),
        (("lynx:moe_guard_hits_total", name), layer.guard_hits),
    ]


def _was_reset(before: EngineStats, after: EngineStats) -> bool:
    """Whether reset_stats() was called in between. One after which more happened than before it stays unseen."""
    sums = ("steps", "step_seconds", "model_seconds", "prompt_tokens", "bytes_read", "finished", "aborted")
    return any(getattr(after, name) < getattr(before, name) for name in sums)


def _restarted_slo(before: EngineStats, after: EngineStats, changed: bool) -> dict[_Key, float]:
    """Returns the slo policy's count where a change of the policy began it again."""
    if before.slo is None:
        return {}
    if changed or after.slo is None or after.slo.steps_over_target < before.slo.steps_over_target:
        return {_SLO_KEY: before.slo.steps_over_target}
    return {}
