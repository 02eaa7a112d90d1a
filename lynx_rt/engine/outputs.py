"""Types that the engine returns: completions with their timing, and statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from lynx_rt.errors import RequestAborted

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lynx_rt.text.response import ToolCall


@dataclass(slots=True)
class Logprob:
    """One token's likelihood under the model's own distribution, before penalties and temperature."""

    logprob: float  # natural logarithm
    rank: int | None = None  # 1 = most likely
    # Without a tokenizer, both are None.
    decoded_token: str | None = None  # with the space before a word; bytes of an incomplete character read "\\xe6"
    bytes: list[int] | None = None  # 0..255; the chosen tokens' bytes joined are the UTF-8 of their text


TokenLogprobs = dict[int, Logprob]  # token id -> Logprob; the token itself first, then the most likely ones in order


@dataclass(slots=True)
class CompletionOutput:
    """One completion of a prompt."""

    index: int  # 0 .. n-1
    text: str  # everything so far, without stop strings and special tokens
    token_ids: list[int]  # with the end-of-text or stop token
    cumulative_logprob: float | None = None  # sum over token_ids; None unless logprobs were asked for
    logprobs: list[TokenLogprobs] | None = None  # one per token
    finish_reason: str | None = None  # None (goes on), "stop", "length", "abort" or "error"
    stop_reason: int | str | None = None  # the stop token or stop string; None for end of text
    delta_text: str = ""  # what `text` grew by since the previous output of this request
    error: str | None = None  # why it ended with "error", or with "abort" because of its timeout
    # The parts of the text, from `chat` only:
    content: str | None = None  # the answer, with calls that are malformed; None where there are tool calls alone
    reasoning: str | None = None  # what the model thought before
    tool_calls: list[ToolCall] = field(default_factory=list)
    # int16 [tokens of prompt and output but the last, MoE layers, k]: the experts of each token, -1 = none. None until the
    # completion has finished, and for an engine without enable_return_routed_experts.
    routed_experts: NDArray[np.int16] | None = field(default=None, compare=False, repr=False)

    @property
    def finished(self) -> bool:
        """Whether the completion has ended; finish_reason says why."""
        return self.finish_reason is not None

    def __str__(self) -> str:
        return self.text


@dataclass(slots=True)
class PromptProgress:
    """How much of a prompt has been computed."""

    total: int  # tokens of the prompt
    cached: int  # of them in the prefix cache
    computed: int  # so far, cached ones included; falls where a preempted request starts again
    seconds: float  # since the first step that worked on it


@dataclass(slots=True)
class CompletionDelta:
    """What a completion grew by since it was last looked at. The fields are those of CompletionOutput."""

    index: int
    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None
    finish_reason: str | None
    stop_reason: int | str | None
    error: str | None
    # The first completion of a request with SamplingParams.report_progress has it, up to its first token; None = nothing new.
    prompt_progress: PromptProgress | None = None


@dataclass(slots=True)
class RequestMetrics:
    """Times of a request's events: seconds on the steady clock (`time.monotonic()` on Linux), 0 = not yet.

    Durations are None until both of their ends are known.
    """

    arrival_time: float = 0.0
    first_scheduled_time: float = 0.0
    first_token_time: float = 0.0
    finish_time: float = 0.0
    num_prompt_tokens: int = 0
    num_computed_prompt_tokens: int = 0  # cached ones included; num_prompt_tokens once there is a token
    num_generation_tokens: int = 0
    num_cached_tokens: int = 0
    num_preemptions: int = 0
    # Rows, of prompt and output, to which the engine's expert_selection was applied; 0 = exact.
    num_selected_rows: int = 0
    num_decode_steps: int = 0  # decode-only steps that it had rows in
    num_experts_read: int = 0  # that these steps read for all rows of their batches, summed over MoE layers
    scheduler_time: float = 0.0  # seconds that choosing the rows took in the steps that had rows of it

    @property
    def queue_time(self) -> float | None:
        """Seconds from the request's arrival to the first step that worked on it."""
        return _span(self.arrival_time, self.first_scheduled_time)

    @property
    def ttft(self) -> float | None:
        """Seconds from arrival to the first token."""
        return _span(self.arrival_time, self.first_token_time)

    @property
    def prefill_time(self) -> float | None:
        """Seconds from the first step that worked on it to the first token."""
        return _span(self.first_scheduled_time, self.first_token_time)

    @property
    def decode_time(self) -> float | None:
        """Seconds from the first token to the last."""
        return _span(self.first_token_time, self.finish_time)

    @property
    def e2e(self) -> float | None:
        """Seconds from arrival to the last token."""
        return _span(self.arrival_time, self.finish_time)

    @property
    def prompt_tps(self) -> float | None:
        """Prompt tokens per second of prefill, cached ones included."""
        return _rate(self.num_prompt_tokens, self.prefill_time)

    @property
    def generation_tps(self) -> float | None:
        """Tokens per second after the first one."""
        return _rate(self.num_generation_tokens - 1, self.decode_time)


@dataclass(slots=True)
class RequestOutput:
    """The state of one request: final from `generate` and `chat`, a snapshot from `stream`, `agenerate` and `step`."""

    request_id: str
    prompt: str | None  # its text; None where only token ids were given
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]  # n of them, in order of index
    finished: bool
    metrics: RequestMetrics
    num_cached_tokens: int = 0  # prompt tokens found in the prefix cache
    prompt_logprobs: list[TokenLogprobs | None] | None = None  # entry 0 is None: nothing precedes it
    # float32 [256]: the experts of the prompt's rows, known from the first token on; see lynx_rt.engine.signature. None for an engine
    # without enable_return_routed_experts.
    prompt_signature: NDArray[np.float32] | None = field(default=None, compare=False, repr=False)

    @property
    def text(self) -> str:
        """The first completion's text."""
        return self.outputs[0].text

    def __str__(self) -> str:
        return self.text

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """Shows the text instead of the whole record in IPython."""
        reasons = ", ".join(str(out.finish_reason) for out in self.outputs)
        printer.text(f"<RequestOutput {self.request_id}: {self.text!r} ({reasons})>")


def sum_prompt_logprobs(output: RequestOutput, start: int) -> float:
    """Returns the sum of the prompt's log probabilities from token `start` on. Raises RequestAborted if they were not computed."""
    if output.prompt_logprobs is None:
        raise RequestAborted(f"request {output.request_id} ended before its prompt was done")
    entries = zip(output.prompt_token_ids[start:], output.prompt_logprobs[start:], strict=True)
    return sum(entry[token_id].logprob for token_id, entry in entries if entry is not None)


class StepSums(NamedTuple):
    """Sums of EngineStats, of which the difference tells what a step did."""

    steps: int
    decode_steps: int
    decode_rows: int
    tokens: int  # of prompts, and generated ones
    seconds: float
    layer_steps: int  # over the MoE layers, like the next one
    active: int
    policy: str  # not a sum: the current one


class ExpertCounts(NamedTuple):
    """Decode-only steps that used each expert, int64 [MoE layers, experts]; without layers on a device other than the CPU."""

    steps: int  # decode-only steps
    rows: int  # of these steps
    wanted: NDArray[np.int64]  # steps in which the model's own routing of some row chose it
    read: NDArray[np.int64]  # steps in which it was read


@dataclass(slots=True)
class LayerStats:
    """Sums over the decode-only steps of one MoE layer."""

    layer: int
    steps: int
    rows: int
    union_before: int  # experts that the model's own routing would have read
    active: int  # experts that were read
    remapped_pairs: int  # (row, slot) pairs that got another expert
    guard_hits: int  # steps that kept the model's own routing, because selection would not have saved anything
    retained_mass: float  # gate mass kept, summed over rows
    changed_rows: int = 0  # rows that did not get the experts of the model's own routing
    # Experts that were not resident: of the model's own routing, and of those that were read. 0 where all experts are in memory.
    misses_before: int = 0
    misses: int = 0


@dataclass(slots=True)
class OpStats:
    """Sums over all steps of one op of the backend. bytes: of weights and KV that it had to read."""

    name: str
    calls: int
    seconds: float
    bytes: int


@dataclass(slots=True)
class SloStats:
    """Report of a governor ("slo:tpot_ms=20"). LayerStats.retained_mass is what it cost."""

    target_seconds: float  # target for a decode-only step
    # The measured cost model: a step takes fixed_seconds + seconds_per_expert * experts + seconds_per_miss * experts from the disk, both of
    # all layers.
    fixed_seconds: float
    seconds_per_expert: float
    steps_over_target: int
    level: int  # current level, index into levels
    levels: list[tuple[str, int]]  # the selection of each level, weakest first, and the decode-only steps under it
    seconds_per_miss: float = 0.0  # waited, with expert_memory


@dataclass(slots=True)
class TierStats:
    """Experts in memory and on the disk, where not all of them are in memory (Engine(expert_memory=...))."""

    slots: int  # gauge: experts that there is memory for, those that pass through included
    slot_bytes: int
    resident: int  # gauge: experts that stay in memory
    hits: int  # experts of a layer and step that were in memory
    misses: int  # those that were read, or computed from their copies in low precision
    decode_hits: int  # the same of decode-only steps
    decode_misses: int
    prefetched: int  # experts whose reads expert_prefetch began
    prefetch_used: int  # those of them that were needed
    bytes_read: int
    failed_reads: int
    wait_seconds: float  # steps had nothing to compute before an expert arrived
    read_seconds: float  # reads were under way
    read_rate: float  # gauge: bytes per second of that time, lately; 0 = nothing was read yet
    read_depth: int  # gauge: pieces of 1 MiB that are read at a time, by a measurement at the start
    low_bytes: int = 0  # gauge: copies in low precision (expert_policy with miss=low, hi_lo)
    late: int = 0  # with these: hits that had not arrived when a step needed them


@dataclass(slots=True)
class EngineStats:
    """Gauges, and counters since the engine was made or `reset_stats()`. Times are seconds."""

    num_running: int
    num_waiting: int
    num_waiting_tokens: int  # prompt tokens of the waiting requests
    kv_blocks_used: int  # memory of the KV cache, counted in pages of all layers
    kv_blocks_total: int
    steps: int
    decode_steps: int
    prompt_tokens: int
    cached_prompt_tokens: int
    generation_tokens: int
    preemptions: int
    finished: int
    aborted: int
    step_seconds: float
    decode_seconds: float
    model_seconds: float
    sampling_seconds: float
    decode_rows: int  # rows of decode-only steps
    # Decode rows by how their experts were chosen. The first two are among decode_rows.
    decode_rows_selected: int  # by the engine's selection
    decode_rows_exact: int  # by the model's own routing, because their request asked for it
    decode_rows_mixed: int  # in steps that computed prompts too, where the model's own routing is used unless phase=all
    bytes_read: int  # weights and KV that the steps had to read: the sum of the next three
    bytes_read_experts: int
    bytes_read_dense: int  # all other weights
    bytes_read_kv: int
    images: int  # of the prompts counted by prompt_tokens
    images_encoded: int  # images that the vision tower was run for
    images_cached: int  # images that a request needed and that were in the encoder cache
    encoder_seconds: float  # of the tower, part of step_seconds
    encoder_cache_bytes: int
    layers: list[LayerStats] = field(default_factory=list)
    ops: list[OpStats] = field(default_factory=list)
    slo: SloStats | None = None  # where expert_selection is "slo:..."
    tier: TierStats | None = None  # where not all experts are in memory

    @classmethod
    def from_native(cls, raw: Mapping[str, Any]) -> EngineStats:
        """Makes statistics of the dict that the compiled module gives. Raises TypeError where its keys are not this class's fields."""
        values = dict(raw)
        values["layers"] = [LayerStats(**layer) for layer in raw["layers"]]
        values["ops"] = [OpStats(**op) for op in raw["ops"]]
        values["slo"] = None if raw["slo"] is None else SloStats(**raw["slo"])
        values["tier"] = None if raw["tier"] is None else TierStats(**raw["tier"])
        return cls(**values)

    @property
    def kv_usage(self) -> float:
        """Share of the KV cache's memory in use, 0..1."""
        return self.kv_blocks_used / self.kv_blocks_total if self.kv_blocks_total else 0.0

    @property
    def mean_decode_batch(self) -> float:
        """Rows per decode-only step."""
        return self.decode_rows / self.decode_steps if self.decode_steps else 0.0


@dataclass(slots=True)
class LayerExpertStats:
    """Means over the decode-only steps of one MoE layer."""

    layer: int
    union_before: float  # experts per step that the model's own routing would have read
    active: float  # experts per step that were read
    retained_mass: float  # share of the rows' own gate mass that was kept, 0..1
    remapped_share: float  # share of (row, slot) pairs that got another expert, 0..1
    guard_share: float  # share of steps that fell back to the model's own routing, 0..1


@dataclass(slots=True)
class ExpertStats:
    """Experts that decoding reads: means over decode-only steps, and over layers at the top level."""

    selection: str  # the current policy
    num_experts: int
    num_experts_per_tok: int
    decode_steps: int
    rows_per_step: float
    union_before: float
    active: float
    retained_mass: float
    layers: list[LayerExpertStats]

    @classmethod
    def from_stats(cls, stats: EngineStats, selection: str, num_experts: int, experts_per_tok: int) -> ExpertStats:
        """Makes means of the engine's sums; 0 if there were no decode-only steps."""
        return cls(
            selection=selection,
            num_experts=num_experts,
            num_experts_per_tok=experts_per_tok,
            decode_steps=stats.decode_steps,
            rows_per_step=stats.mean_decode_batch,
            union_before=layer_mean(stats.layers, "union_before", "steps"),
            active=layer_mean(stats.layers, "active", "steps"),
            retained_mass=layer_mean(stats.layers, "retained_mass", "rows"),
            layers=[
                LayerExpertStats(
                    layer=layer.layer,
                    union_before=layer_mean([layer], "union_before", "steps"),
                    active=layer_mean([layer], "active", "steps"),
                    retained_mass=layer_mean([layer], "retained_mass", "rows"),
                    remapped_share=layer_mean([layer], "remapped_pairs", "rows") / max(experts_per_tok, 1),
                    guard_share=layer_mean([layer], "guard_hits", "steps"),
                )
                for layer in stats.layers
            ],
        )


def layer_mean(layers: Sequence[LayerStats], name: str, over: Literal["steps", "rows"]) -> float:
    """Returns the mean of a field of LayerStats over the decode-only steps, or their rows, of all given layers; 0 if there are none."""
    return _ratio(sum(getattr(layer, name) for layer in layers), sum(getattr(layer, over) for layer in layers))


def _ratio(total: float, count: float) -> float:
    return total / count if count else 0.0


def _span(start: float, end: float) -> float | None:
    return end - start if start and end else None


def _rate(count: int, seconds: float | None) -> float | None:
    return count / seconds if seconds else None
