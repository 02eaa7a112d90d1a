"""An engine's reports on itself: its model, statistics and policy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lynx_rt.engine.outputs import EngineStats, ExpertCounts, ExpertStats, StepSums
from lynx_rt.errors import ValidationError, encoding_fault, shown

if TYPE_CHECKING:
    from lynx_rt import _C
    from lynx_rt.text.response import ResponseFormat


def policy_text(selection: str | None) -> str:
    """Returns the C++ form of an expert_selection argument."""
    if not isinstance(selection, (str, type(None))) or encoding_fault(selection or ""):
        raise ValidationError(
            f"expert_selection must be a policy such as 'lynx' or None, got {shown(selection)}", "expert_selection"
        )
    return selection or "topk"


class EngineState:
    """The part of Engine that runs no requests. Its methods may be called at any time, from any thread."""

    _core: _C.Engine
    _info: dict[str, Any]  # the model as loaded
    _response_format: ResponseFormat

    def stats(self) -> EngineStats:
        """Returns gauges, and counters since the start or `reset_stats()`."""
        return EngineStats.from_native(self._core.stats())

    def step_sums(self) -> StepSums:
        """Returns what a server reads after every step, in a tenth of the time of `stats()`."""
        return StepSums(*self._core.step_sums())

    def expert_counts(self) -> ExpertCounts:
        """Returns how many decode-only steps used each expert, since the start or `reset_stats()`."""
        return ExpertCounts(*self._core.expert_counts())

    @property
    def last_step_time(self) -> float:
        """End of the last step, in seconds of `time.monotonic()`; 0 = none yet. Waits for no lock, so that a watchdog may ask."""
        return self._core.last_step_time

    @property
    def step_start_time(self) -> float:
        """Start of the step in progress, on the same clock and as quick; 0 while no step runs."""
        return self._core.step_start_time

    def reset_stats(self) -> None:
        """Sets the counters of `stats()` to zero."""
        self._core.reset_stats()

    def expert_stats(self) -> ExpertStats:
        """Returns how many experts the decode-only steps read, before and after selection."""
        info = self._info
        return ExpertStats.from_stats(
            self.stats(), self.expert_selection, info["num_experts"], info["num_experts_per_tok"]
        )

    def set_expert_selection(self, selection: str | None) -> None:
        """Changes the policy from the next step on; None = the model's own routing. Raises ValidationError."""
        self._core.set_expert_selection(policy_text(selection))

    @property
    def expert_selection(self) -> str:
        """The current policy, with all of its parameters; "topk" is the model's own routing."""
        return self._core.expert_selection()

    @property
    def model_config(self) -> dict[str, Any]:
        """Shape of the model (hidden_size, num_layers, num_experts, ...) as loaded."""
        return dict(self._info)

    @property
    def response_format(self) -> ResponseFormat:
        """How the model writes reasoning and tool calls: the parsers that `chat` uses, by name."""
        return self._response_format

    @property
    def max_model_len(self) -> int:
        """Tokens that prompt and output may have together."""
        return int(self._info["max_model_len"])

    @property
    def device(self) -> str:
        """Description of what the model runs on: "cpu avx2, 2 threads, bfloat16", "cuda:0 NVIDIA H100, bfloat16"."""
        return str(self._info["device"])

    @property
    def dtype(self) -> str:
        """Element type of the computation: "float32", "bfloat16" or "float16"."""
        return str(self._info["dtype"])

    @property
    def memory(self) -> dict[str, int]:
        """Bytes of weights, KV cache and workspace."""
        return {name: self._info[f"{name}_bytes"] for name in ("weight", "kv", "workspace")}

    @property
    def _vocab_size(self) -> int:
        return int(self._info["vocab_size"])
