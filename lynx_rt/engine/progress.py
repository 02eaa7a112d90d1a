"""Shows users the progress of `generate`, `chat`, loading and long series of runs, and warnings of loading."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lynx_rt.engine.request import Request


def wants_bar(use_tqdm: bool | None, count: int) -> bool:
    """Returns use_tqdm; if None, whether there are several things to do and a terminal to show them on."""
    return use_tqdm if use_tqdm is not None else count > 1 and sys.stderr.isatty()


def warn_of_model(path: Path, info: dict[str, Any]) -> dict[str, Any]:
    """Warns the maker of an Engine where its checkpoint disagrees with its config.json. Returns the model info."""
    for text in info["warnings"]:
        warnings.warn(f"{path}: {text}", stacklevel=3)
    return info


class _Closed:
    """Closes its bar, if it has one, at the end of a with statement."""

    _bar: Any = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()


class ProgressBar(_Closed):
    """Shows finished requests on stderr, with tokens per second in and out; does nothing if no bar is wanted."""

    _RATE_EVERY_S = 0.2

    def __init__(self, requests: Sequence[Request], use_tqdm: bool | None) -> None:
        self._requests = requests
        if wants_bar(use_tqdm, len(requests)):
            from tqdm.auto import tqdm

            self._bar = tqdm(total=len(requests), desc="Processed prompts", unit="req", dynamic_ncols=True)
            self._start = self._rated = time.monotonic()

    def show(self, done: int) -> None:
        """Updates the bar. done: finished requests so far."""
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


class LoadProgress:
    """Shows the bytes of weights that are copied to a device or quantised, on stderr if that is a terminal."""

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


class WorkBar(_Closed):
    """Shows jobs of unequal size on stderr, with the time left: a bar on a terminal, else one line per finished job."""

    _FORMAT = "{percentage:3.0f}%|{bar}| {elapsed}<{remaining} {desc}{postfix}"

    def __init__(self, count: int, work: float) -> None:
        """count: jobs.  work: of all jobs, in the unit of add(); the time left assumes a constant rate of work."""
        self._count, self._work = count, work
        self._jobs, self._done, self._start = 0, 0.0, time.monotonic()
        if count and sys.stderr.isatty():
            from tqdm.auto import tqdm

            self._bar = tqdm(total=work, bar_format=self._FORMAT, dynamic_ncols=True, smoothing=0.02)

    def begin(self, name: str) -> None:
        """Shows the name of the next job."""
        if self._bar is not None:
            self._bar.set_description_str(f"{self._jobs + 1}/{self._count} {name}")

    def add(self, work: float) -> None:
        self._done += work
        if self._bar is not None:
            self._bar.update(work)

    def finish(self, result: str) -> None:
        """Counts the job of the last begin() as done."""
        self._jobs += 1
        if self._bar is not None:
            self._bar.set_postfix_str(result, refresh=False)
        else:
            left = (self._work - self._done) * (time.monotonic() - self._start) / max(self._done, 1e-9)
            print(f"{self._jobs}/{self._count} {result}; about {_duration(left)} left", file=sys.stderr, flush=True)

    def __enter__(self) -> WorkBar:
        return self


def _duration(seconds: float) -> str:
    """Returns "2 h 05 min", "7 min" or "40 s"."""
    minutes = round(seconds / 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    return f"{minutes} min" if seconds >= 90 else f"{seconds:.0f} s"
