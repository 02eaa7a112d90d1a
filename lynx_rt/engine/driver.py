"""Runs the C++ engine for any number of threads: the thread that waits first makes the steps for all."""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from lynx_rt.errors import EngineClosedError, InternalError, ValidationError
from lynx_rt.interrupts import DeferInterrupts

if TYPE_CHECKING:
    from lynx_rt import _C
    from lynx_rt.engine.constraint import Constraint
    from lynx_rt.engine.request import Completion, Request

_POLL_S = 0.05  # period at which a waiting thread looks for Ctrl-C and its deadline


class _Addition:
    """Requests that are to be queued together."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self.requests = requests
        self.done = False
        self.error: BaseException | None = None  # why none of them was queued


class Driver:
    """Keeps the requests in flight, and decides which thread steps. Thread-safe.

    One lock guards everything here. It is free while C++ runs a step, and nobody waits for a step while holding it: what C++
    must be told during a step is kept here, and the thread that steps passes it on before the next one. So an event loop
    may take the lock. A request is known here before its first output arrives.

    When the interpreter exits, and in the child of a fork(), the other threads are gone, and one of them may have held the
    lock. From then on nothing takes it, and everything but closing and aborting raises EngineClosedError.
    """

    def __init__(self, core: _C.Engine) -> None:
        self._core = core
        self._changed = threading.Condition()  # its RLock lets a stream be dropped, and so aborted, anywhere
        self._live: dict[int, Completion] = {}  # the C++ engine's number -> completion
        self._requests: dict[str, Request] = {}  # request_id -> request, unfinished ones
        self._additions: list[_Addition] = []  # not yet passed on to C++, in order
        self._ended: list[int] = []  # numbers of completions that C++ is to abort after the step in progress
        self._refills: list[Constraint] = []  # those whose masks the next step needs made
        self._stepping = False
        self._applying = False  # outputs of a step are being handed out
        self._wakes: list[Callable[[], None]] = []  # to be called when they all are
        self._steps = 0  # number of steps made so far
        self._last_progress = time.monotonic()
        self._closed = False
        self._pid = os.getpid()
        self._numbers = itertools.count()  # ids of requests that come without one
        self.step_hook: Callable[[], None] | None = (
            None  # called after each step, without the lock, by the thread that made it
        )
        self._background: threading.Thread | None = None
        self._background_requests: set[Request] = set()

    @property
    def closed(self) -> bool:
        return self._closed or not self._alive

    def check_open(self) -> None:
        self._check_alive()
        if self._closed:
            raise EngineClosedError("the engine has been closed")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps requests from changing while their outputs are read."""
        with self._lock:
            yield

    def add(self, requests: Sequence[Request]) -> None:
        """Queues all requests. If one is refused, none of them stays queued, and the error is raised."""
        addition = _Addition(requests)
        try:
            with DeferInterrupts(), self._lock:
                self.check_open()
                self._additions.append(addition)
                while not addition.done:
                    if not self._stepping:
                        self._pass_on()
                    else:
                        self._changed.wait(_POLL_S)
                        self.check_open()
            if addition.error is not None:
                raise addition.error
        except BaseException:
            self.abort(requests)
            raise

    def submit(self, request: Request) -> None:
        """Queues a request without waiting for a step in progress, and steps until it is finished, in the driver's own thread.

        The request's `error` says that it was refused.
        """
        with self._lock:
            self.check_open()
            self._additions.append(_Addition([request]))
            self._run_in_background(request)
            self._changed.notify_all()

    def abort(self, requests: Sequence[Request]) -> int:
        """Ends the unfinished requests and returns their number; waiting threads see them as aborted.

        A request that is not added yet is never added. During a step, C++ hears of it, and frees the memory, when the step ends.
        """
        if not self._alive:
            return 0
        count = 0
        with DeferInterrupts(), self._lock:
            for request in requests:
                request.abandoned = True
                self._background_requests.discard(request)
                if self._requests.get(request.request_id) is not request:
                    continue
                del self._requests[request.request_id]
                count += 1
                for completion in request.completions:
                    if completion.native_id is not None and self._live.pop(completion.native_id, None) is not None:
                        self._abort_native(completion.native_id)
                    completion.abort()
                request.touch()
            self._changed.notify_all()
        return count

    def wake_after_step(self, wake: Callable[[], None]) -> None:
        """Calls `wake` once the outputs of a step are all handed out; at once at any other time. Called under the lock.

        A thread that woke up before would only wait for the lock.
        """
        if self._applying:
            self._wakes.append(wake)
        else:
            wake()

    def find(self, request_id: str) -> Request | None:
        """Returns the unfinished request with this id, None where there is none."""
        with self._lock:
            return self._requests.get(request_id)

    def run_until(self, ready: Callable[[], bool], deadline: float | None = None) -> bool:
        """Steps, or waits while another thread does, until ready() is true; returns False at the deadline (monotonic seconds).

        ready() is called under the lock. Raises EngineClosedError, what a step raised, and KeyboardInterrupt between steps.
        """
        with DeferInterrupts() as interrupts, self._lock:
            try:
                while not ready():
                    interrupts.check()
                    self.check_open()
                    if deadline is not None and time.monotonic() >= deadline:
                        return False
                    if self._stepping:
                        self._changed.wait(_POLL_S)
                    elif not self._step() and not self._additions and not self._core.has_unfinished() and not ready():
                        raise InternalError("the engine has nothing to do, but a request is still waiting for it")
                return True
            finally:
                self._changed.notify_all()  # another thread may have to make the steps now

    def step_once(self) -> None:
        """Makes one step, or waits for the end of another thread's. Does nothing if there is nothing to do."""
        with DeferInterrupts(), self._lock:
            self.check_open()
            before = self._steps
            if not self._stepping:
                self._step()
            while self._stepping and self._steps == before:
                self._changed.wait(_POLL_S)

    def stalled_seconds(self) -> float:
        """Returns the time since the last step ended, 0 while there is nothing to do. Takes no lock: a step may hang."""
        return time.monotonic() - self._last_progress if self._live or self._additions else 0.0

    def close(self) -> None:
        """Ends all requests and frees the C++ engine's memory. Idempotent."""
        if not self._alive:
            return
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._core.close()  # waits for a step in progress
        with self._changed:
            waiting = [request for addition in self._additions for request in addition.requests]
            for request in (*self._requests.values(), *waiting):
                request.error = EngineClosedError("the engine has been closed")
                request.touch()
            self._additions.clear()
            self._live.clear()
            self._requests.clear()

    @property
    def _alive(self) -> bool:
        """Whether the threads that may hold the lock still run; False in the child of a fork and while Python exits."""
        return os.getpid() == self._pid and not sys.is_finalizing()

    @property
    def _lock(self) -> threading.Condition:
        self._check_alive()
        return self._changed

    def _check_alive(self) -> None:
        if not self._alive:
            self._core.has_unfinished()  # after a fork, this raises an error that says so
            raise EngineClosedError("the interpreter is exiting")

    def _pass_on(self) -> None:
        """Queues in C++ the requests that came in during the last step. The lock is held, and no thread steps."""
        while self._additions:
            addition = self._additions.pop(0)
            if not self._live:
                self._last_progress = time.monotonic()
            try:
                for request in addition.requests:
                    self._add(request)
            except Exception as error:
                addition.error = error
                for request in addition.requests:
                    request.error = request.error or error
                self.abort(addition.requests)
            for request in addition.requests:
                if addition.error is not None or request.abandoned:
                    self._background_requests.discard(request)
                    request.touch()
            addition.done = True
        self._changed.notify_all()

    def _add(self, request: Request) -> None:
        while not request.request_id:
            name = f"auto-{next(self._numbers)}"
            request.request_id = "" if name in self._requests else name
        if request.request_id in self._requests:
            raise ValidationError(f"request_id {request.request_id!r} is in use", "request_id")
        if request.abandoned:
            return
        self._requests[request.request_id] = request
        for completion in request.completions:
            mask = None if completion.constraint is None else completion.constraint.token_mask
            images = [list(request.images)] if request.images else []
            number = self._core.add_request(request.prompt_token_ids, completion.native_params, mask, *images)
            completion.native_id = number
            self._live[number] = completion
        request.images = ()

    def _step(self) -> bool:
        """Makes one C++ step with the lock released; returns False without outputs. The lock is held once on entry and exit."""
        self._pass_on()
        self._stepping = True
        refills, self._refills = self._refills, []
        self._changed.release()
        try:
            for constraint in refills:
                constraint.refill()
            outputs = self._core.step()
            if self.step_hook is not None:
                self.step_hook()
        finally:
            self._changed.acquire()
            self._stepping = False
            self._steps += 1
            self._last_progress = time.monotonic()
            while self._ended:
                self._abort_native(self._ended.pop())
        wake = False
        self._applying = True
        try:
            for output in outputs:
                completion = self._live.get(output.request_id)
                if completion is not None:  # it was not aborted during the step
                    wake |= self._apply(completion, output)
        finally:
            self._applying = False
            while self._wakes:
                self._wakes.pop()()
        if wake or not outputs:
            self._changed.notify_all()
        return bool(outputs)

    def _apply(self, completion: Completion, output: _C.StepOutput) -> bool:
        """Hands one output to its completion; returns True if a thread may be waiting for it."""
        request = completion.request
        if request.abandoned:
            self.abort([request])
            return True
        if completion.apply(output):
            self._abort_native(output.request_id)
        if completion.constraint is not None and not completion.finished:
            self._refills.append(completion.constraint)
        if completion.finished:
            del self._live[output.request_id]
            if request.finished:
                self._requests.pop(request.request_id, None)
                self._background_requests.discard(request)
        request.touch()
        return request.streaming or request.finished

    def _abort_native(self, number: int) -> None:
        if self._stepping:
            self._ended.append(number)
            return
        with contextlib.suppress(EngineClosedError):
            self._core.abort(number)

    def _run_in_background(self, request: Request) -> None:
        self._background_requests.add(request)
        if self._background is None:
            self._background = threading.Thread(target=self._run_background, name="lynx_rt-driver", daemon=True)
            self._background.start()

    def _run_background(self) -> None:
        def idle() -> bool:
            if not self._background_requests:
                self._background = None  # set under the lock, so that the next request starts a new thread
            return self._background is None

        try:
            self.run_until(idle)
        except BaseException as error:
            with self._changed:
                self._background = None
                failed = list(self._background_requests)
                for request in failed:
                    request.error = error
                self.abort(failed)
                for request in failed:  # also those that C++ has not got yet
                    request.touch()
