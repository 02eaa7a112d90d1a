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


class Driver:
    """Keeps the requests in flight, and decides which thread steps. Thread-safe.

    One lock guards everything here. It is free while C++ runs a step. Adding and aborting take the lock and then wait
    for the step in progress inside C++, so a request is always known here before its first output arrives.

    When the interpreter exits, and in the child of a fork(), the other threads are gone, and one of them may have held the
    lock. From then on nothing takes it, and everything but closing and aborting raises EngineClosedError.
    """

    def __init__(self, core: _C.Engine) -> None:
        self._core = core
        self._changed = threading.Condition()  # its RLock lets a stream be dropped, and so aborted, anywhere
        self._live: dict[int, Completion] = {}  # the C++ engine's number -> completion
        self._requests: dict[str, Request] = {}  # request_id -> request, unfinished ones
        self._refills: list[Constraint] = []  # those whose masks the next step needs made
        self._stepping = False
        self._steps = 0  # number of steps made so far
        self._closed = False
        self._pid = os.getpid()
        self._numbers = itertools.count()  # ids of requests that come without one
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
        try:
            with DeferInterrupts(), self._lock:
                self.check_open()
                for request in requests:
                    self._add(request)
        except BaseException:
            self.abort(requests)
            raise

    def abort(self, requests: Sequence[Request]) -> int:
        """Ends the unfinished requests and returns their number; waiting threads see them as aborted.

        A request that is not added yet is never added.
        """
        if not self._alive:
            return 0
        count = 0
        with DeferInterrupts(), self._lock:
            for request in requests:
                request.abandoned = True
                if self._requests.get(request.request_id) is not request:
                    continue
                del self._requests[request.request_id]
                self._background_requests.discard(request)
                count += 1
                for completion in request.completions:
                    if completion.native_id is not None and self._live.pop(completion.native_id, None) is not None:
                        self._abort_native(completion.native_id)
                    completion.abort()
                request.touch()
            self._changed.notify_all()
        return count

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
                    elif not self._step() and not self._core.has_unfinished() and not ready():
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

    def run_in_background(self, request: Request) -> None:
        """Makes the driver's own thread step until the request is finished, for callers that must not block."""
        with self._lock:
            if request.finished:  # other threads' steps finished it
                return
            self._background_requests.add(request)
            if self._background is None:
                self._background = threading.Thread(target=self._run_background, name="lynx_rt-driver", daemon=True)
                self._background.start()

    def close(self) -> None:
        """Ends all requests and frees the C++ engine's memory. Idempotent."""
        if not self._alive:
            return
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._core.close()  # waits for a step in progress
        with self._changed:
            for request in self._requests.values():
                request.error = EngineClosedError("the engine has been closed")
                request.touch()
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
            number = self._core.add_request(request.prompt_token_ids, completion.native_params, mask)
            completion.native_id = number
            self._live[number] = completion

    def _step(self) -> bool:
        """Makes one C++ step with the lock released; returns False without outputs. The lock is held once on entry and exit."""
        self._stepping = True
        refills, self._refills = self._refills, []
        self._changed.release()
        try:
            for constraint in refills:
                constraint.refill()
            outputs = self._core.step()
        finally:
            self._changed.acquire()
            self._stepping = False
            self._steps += 1
        wake = False
        for output in outputs:
            completion = self._live.get(output.request_id)
            if completion is not None:  # it was not aborted during the step
                wake |= self._apply(completion, output)
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
        with contextlib.suppress(EngineClosedError):
            self._core.abort(number)

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
