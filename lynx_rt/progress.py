"""The progress bars of `generate`, `chat` and of loading."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lynx_rt.request import Request


def wants_bar(use_tqdm: bool | None, count: int) -> bool:
    """use_tqdm, or if None: whether there is more than one thing to do and a terminal to show it on."""
    return use_tqdm if use_tqdm is not None else count > 1 and sys.stderr.isatty()


class ProgressBar:
    """Finished requests on stderr, with tokens per second in and out; does nothing where no bar is wanted."""

    _RATE_EVERY_S = 0.2

    def __init__(self, requests: Sequence[Request], use_tqdm: bool | None) -> None:
        self._requests = requests
        self._bar: Any = None
        if wants_bar(use_tqdm, len(requests)):
            from tqdm.auto import tqdm

            self._bar = tqdm(total=len(requests), desc="Processed prompts", unit="req", dynamic_ncols=True)
            self._start = self._rated = time.monotonic()

    def show(self, done: int) -> None:
        """done: finished requests so far."""
        if self._bar is None or done == self._bar.n:
            return
        now = time.monotonic()
        if now - self._rated >= self._RATE_EVERY_S or done == len(self._requests):
            self._rated = now
            seconds = max(now - self._start, 1e-9)
            tokens_in = sum(len(request.prompt_token_ids) for request in self._requests if request.finished)
            tokens_out = sum(completion.num_tokens for request in self._requests for completion in request.completions)
            rates = f"input: {tokens_in / seconds:.0f} tok/s, output: {tokens_out / seconds:.0f} tok/s"
            self._bar.set_postfix_str(rates, refresh=False)
        self._bar.update(done - self._bar.n)

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()


class LoadProgress:
    """Bytes of weights on their way to a device, or being quantised, on stderr where that is a terminal."""

    def __init__(self) -> None:
        self._bar: Any = None

    def __call__(self, done: int, total: int) -> None:
        if self._bar is None:
            if not sys.stderr.isatty():
                return
            from tqdm.auto import tqdm

            self._bar = tqdm(total=total, desc="Loading weights", unit="B", unit_scale=True, dynamic_ncols=True)
        self._bar.update(done - self._bar.n)
        if done == total:
            self._bar.close()
