"""Requests in flight: turn outputs of C++ steps into RequestOutputs. Used by the engine only, under its lock."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

from lynx_rt.engine.outputs import (
    CompletionDelta,
    CompletionOutput,
    Logprob,
    PromptProgress,
    RequestMetrics,
    RequestOutput,
    TokenLogprobs,
)
from lynx_rt.errors import LynxError, ValidationError, shown
from lynx_rt.text.stop_strings import StopFilter

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lynx_rt import _C
    from lynx_rt.engine.constraint import Constraint
    from lynx_rt.engine.images import NativeImage
    from lynx_rt.engine.sampling_params import SamplingParams
    from lynx_rt.text.detokenizer import Detokenizer
    from lynx_rt.text.prompts import ParsedPrompt
    from lynx_rt.text.tokenizer import Tokenizer

# Fields of StepOutput and RequestMetrics that grow with every step. Those of single completions stay 0.
_SUMS = ("num_selected_rows", "num_decode_steps", "num_experts_read", "scheduler_time")


class Completion:
    """One of the n completions of a request. To the C++ engine, each is a request of its own."""

    def __init__(self, request: Request, index: int, native_params: _C.SamplingParams) -> None:
        params, tokenizer = request.params, request.tokenizer
        self.request = request
        self.native_params = native_params
        self.native_id: int | None = None  # the C++ engine's number, once added
        self.last_step: _C.StepOutput | None = None  # for the sums, which cost too much to read for every token
        self.metrics = RequestMetrics(num_prompt_tokens=len(request.prompt_token_ids))
        self.prompt_logprobs: list[TokenLogprobs | None] | None = None
        self._out = CompletionOutput(index, "", [])
        self._num_taken = 0  # tokens that take_delta() has returned
        self._end_taken = False  # it has returned the finish_reason
        self._progress: PromptProgress | None = None  # that it has not returned
        self._routed_experts: list[NDArray[np.int16]] = []  # in order of position
        self.prompt_signature: NDArray[np.float32] | None = None
        self._detokenizer: Detokenizer | None = None
        if params.detokenize and tokenizer is not None:
            self._detokenizer = tokenizer.detokenizer(params.skip_special_tokens, request.prompt_token_ids)
        self.constraint = request.make_constraint(native_params.stop_token_ids)
        self._text = StopFilter(params.stop or (), params.include_stop_str_in_output)
        if params.logprobs is not None:
            self._out.logprobs = []
            self._out.cumulative_logprob = 0.0

    @property
    def finished(self) -> bool:
        return self._out.finish_reason is not None

    @property
    def num_tokens(self) -> int:
        """Tokens generated so far."""
        return len(self._out.token_ids)

    def apply(self, step: _C.StepOutput) -> bool:
        """Takes in a step's output. Returns True if Python ended the completion, so that C++ must be told."""
        try:
            return self._apply(step)
        except LynxError as error:  # the tokenizer cannot decode; other requests go on
            self._detokenizer = None
            self._out.error = str(error)
            self._finish("error", None)
            return step.finish_reason is None

    def _apply(self, step: _C.StepOutput) -> bool:
        if (routed_experts := step.routed_experts) is not None:
            if step.num_preemptions > self.metrics.num_preemptions:  # all positions were computed again
                self._routed_experts.clear()
            self._routed_experts.append(routed_experts)
        self._update_metrics(step)
        if prompt_logprobs := step.prompt_logprobs:
            self.prompt_logprobs = [self._logprobs(entry) if entry else None for entry in prompt_logprobs]
        token_ids, logprobs = step.token_ids, step.logprobs
        if token_ids and self.prompt_signature is None and self._routed_experts:
            from lynx_rt.engine.signature import prompt_signature

            self.prompt_signature = prompt_signature(self._routed_experts, self.metrics.num_prompt_tokens)
        finish_reason, params = step.finish_reason, self.request.params
        if finish_reason is not None:
            self.metrics.finish_time = step.finish_time
        hide_last = finish_reason == "stop" and not params.include_stop_str_in_output
        last = len(token_ids) - 1
        for place, token_id in enumerate(token_ids):
            self._add_token(token_id, logprobs[place] if logprobs else None)
            if self.constraint is not None:
                self.constraint.accept(token_id)
            if hide_last and place == last:
                break
            if self._add_text(token_id):
                self._finish("stop", self._text.stopped_by)
                return finish_reason is None
        if finish_reason is not None:
            self._out.error = step.error or None
            if step.error and self.constraint is not None:
                self._out.error = self.constraint.error or step.error
            reason = self.request.stop_reason(step.stop_token_id)
            self._finish(finish_reason, reason)
            if isinstance(reason, str) and params.include_stop_str_in_output:
                self._text.append(reason)  # the detokenizer hides this special token
        return False

    def abort(self) -> None:
        """Ends the completion from outside; no effect if it has ended."""
        if not self.finished:
            self._finish("abort", None)

    def take_output(self) -> CompletionOutput:
        """Returns a snapshot. Its delta_text is the text that became visible since the last snapshot."""
        out = self._out
        delta = self._text.take()
        return CompletionOutput(
            index=out.index,
            text=self._text.text,
            token_ids=list(out.token_ids),
            cumulative_logprob=out.cumulative_logprob,
            logprobs=None if out.logprobs is None else list(out.logprobs),
            finish_reason=out.finish_reason,
            stop_reason=out.stop_reason,
            delta_text=delta,
            error=out.error,
            routed_experts=out.routed_experts,
        )

    def take_delta(self) -> CompletionDelta | None:
        """Returns what is new since the last call; None if nothing is. Costs nothing for what was taken before."""
        out, start, end = self._out, self._num_taken, len(self._out.token_ids)
        reason, logprobs = out.finish_reason, out.logprobs
        progress, self._progress = self._progress, None
        if start == end and progress is None and (reason is None or self._end_taken):
            return None
        self._num_taken, self._end_taken = end, reason is not None
        fresh = None if logprobs is None else logprobs[start:]
        text, token_ids = self._text.take(), out.token_ids[start:]
        return CompletionDelta(out.index, text, token_ids, fresh, reason, out.stop_reason, out.error, progress)

    def _add_token(self, token_id: int, logprobs: list[tuple[int, float, int]] | None) -> None:
        self._out.token_ids.append(token_id)
        if self._out.logprobs is not None and logprobs:
            self._out.logprobs.append(self._logprobs(logprobs))
            self._out.cumulative_logprob = (self._out.cumulative_logprob or 0.0) + logprobs[0][1]

    def _add_text(self, token_id: int) -> bool:
        if self._detokenizer is None:
            return False
        armed = len(self._out.token_ids) > self.request.params.min_tokens
        return self._text.add(self._detokenizer.add(token_id), armed)

    def _finish(self, reason: str, stop_reason: int | str | None) -> None:
        if self._detokenizer is not None and self._text.stopped_by is None:
            self._text.add(self._detokenizer.finish(), armed=False)
            self._text.finish()
        if self._routed_experts:
            import numpy as np

            self._out.routed_experts = np.concatenate(self._routed_experts)
        self._out.finish_reason = reason
        self._out.stop_reason = stop_reason
        if not self.metrics.finish_time:  # Python ended it
            self.metrics.finish_time = time.monotonic()

    def _logprobs(self, entries: list[tuple[int, float, int]]) -> TokenLogprobs:
        tokenizer = self.request.tokenizer
        if tokenizer is None:
            return {token_id: Logprob(logprob, rank) for token_id, logprob, rank in entries}
        return {
            token_id: Logprob(logprob, rank, tokenizer.piece(token_id), list(tokenizer.token_bytes(token_id)))
            for token_id, logprob, rank in entries
        }

    def _update_metrics(self, step: _C.StepOutput) -> None:
        metrics = self.metrics
        if not metrics.first_token_time or step.num_preemptions != metrics.num_preemptions:
            for name in ("arrival_time", "first_scheduled_time", "first_token_time"):
                setattr(metrics, name, getattr(step, name))
            metrics.num_cached_tokens = step.num_cached_tokens
            metrics.num_computed_prompt_tokens = step.num_computed_prompt_tokens
            metrics.num_preemptions = step.num_preemptions
        self.last_step = step
        if self.request.params.report_progress and not self._out.index and not self._out.token_ids:
            self._progress = PromptProgress(
                metrics.num_prompt_tokens,
                metrics.num_cached_tokens,
                metrics.num_computed_prompt_tokens,
                time.monotonic() - metrics.first_scheduled_time,
            )


class Request:
    """One prompt with its n completions. `notify` is called after every change, under the engine's lock.

    request_id: None = the driver chooses an unused one when the request is added.
    make_constraint: makes the constraint of a completion, None = it has none, of the tokens that may end its text.
    """

    def __init__(
        self,
        request_id: str | None,
        prompt: ParsedPrompt,
        params: SamplingParams,
        tokenizer: Tokenizer | None,
        eos_token_ids: frozenset[int],
        make_native: Callable[[int], _C.SamplingParams],
        stop_of_token: Mapping[int, str] = MappingProxyType({}),
        make_constraint: Callable[[list[int]], Constraint | None] = lambda stop_token_ids: None,
        images: Sequence[NativeImage] = (),
    ) -> None:
        if request_id is not None and not (isinstance(request_id, str) and request_id):
            raise ValidationError(
                f"request_id: expected a string that is not empty, got {shown(request_id)}", "request_id"
            )
        self.request_id = request_id or ""
        self.prompt = prompt.text
        self.prompt_token_ids = prompt.token_ids
        self.params = params
        self.tokenizer = tokenizer
        self.make_constraint = make_constraint
        self.images = images  # until the compiled engine has them
        self.error: BaseException | None = None  # set if the thread that steps for the request failed
        self.streaming = False  # a thread may be waiting for every change, not just for the end
        self.abandoned = False  # its outputs are no longer wanted
        self.changed = False  # since the last take_output()
        self.notify: Callable[[Request], None] = lambda request: None
        self._eos_token_ids = frozenset() if params.ignore_eos else eos_token_ids
        self._stop_of_token = stop_of_token  # the stop strings that are special tokens, by id
        self.completions = [Completion(self, index, make_native(index)) for index in range(params.n)]

    @property
    def finished(self) -> bool:
        return all(completion.finished for completion in self.completions)

    def stop_reason(self, token_id: int | None) -> int | str | None:
        """Returns the stop token that the caller asked for, or its stop string; None for the model's own end."""
        if token_id is None or token_id in self._eos_token_ids:
            return None
        return self._stop_of_token.get(token_id, token_id)

    def touch(self) -> None:
        """Notes and reports that something changed."""
        self.changed = True
        self.notify(self)

    def take_output(self) -> RequestOutput:
        """Returns a snapshot of everything so far."""
        self.changed = False
        first = self.completions[0]
        return RequestOutput(
            request_id=self.request_id,
            prompt=self.prompt,
            prompt_token_ids=self.prompt_token_ids,
            outputs=[completion.take_output() for completion in self.completions],
            finished=self.finished,
            metrics=self.metrics(),
            num_cached_tokens=first.metrics.num_cached_tokens,
            prompt_logprobs=first.prompt_logprobs,
            prompt_signature=first.prompt_signature,
        )

    def take_deltas(self) -> list[CompletionDelta]:
        """Returns what is new of each completion that has grown or ended since the last call."""
        self.changed = False
        if len(self.completions) == 1:
            delta = self.completions[0].take_delta()
            return [] if delta is None else [delta]
        return [delta for completion in self.completions if (delta := completion.take_delta()) is not None]

    def metrics(self) -> RequestMetrics:
        """Returns the metrics of all completions together: the earliest start, the latest end, the sum of tokens."""
        each = [completion.metrics for completion in self.completions]
        steps = [completion.last_step for completion in self.completions if completion.last_step is not None]
        first = each[0]

        def earliest(name: str) -> float:
            return min((time for item in each if (time := getattr(item, name))), default=0.0)

        return RequestMetrics(
            arrival_time=first.arrival_time,
            first_scheduled_time=earliest("first_scheduled_time"),
            first_token_time=earliest("first_token_time"),
            finish_time=max(item.finish_time for item in each) if self.finished else 0.0,
            num_prompt_tokens=first.num_prompt_tokens,
            num_generation_tokens=sum(completion.num_tokens for completion in self.completions),
            num_cached_tokens=first.num_cached_tokens,
            num_computed_prompt_tokens=max(item.num_computed_prompt_tokens for item in each),
            num_preemptions=sum(item.num_preemptions for item in each),
            **{name: sum(getattr(step, name) for step in steps) for name in _SUMS},
        )


class Claim:
    """Reference of a reader to a request's outputs: once it is dropped, the next step ends the request.

    An asynchronous generator needs it: once the event loop is closed, Python drops a generator without running its `finally`.
    """

    def __init__(self, request: Request) -> None:
        self._request = request

    def __del__(self) -> None:
        self._request.abandoned = True
