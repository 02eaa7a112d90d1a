"""Hands a request's outputs to asyncio. A step wakes the event loop once, whatever the number of requests in it."""

from __future__ import annotations

import asyncio
import contextlib
import weakref

from lynx_rt.engine.driver import Driver
from lynx_rt.engine.outputs import CompletionDelta, RequestOutput
from lynx_rt.engine.request import Claim, Request


class _Mailbox:
    """Sets events of one event loop from the threads that step."""

    def __init__(self, loop: asyncio.AbstractEventLoop, driver: Driver) -> None:
        self._loop = weakref.proxy(loop)  # the table of mailboxes must not keep the loop
        self._driver = driver
        self._posted: list[asyncio.Event] = []  # guarded by the driver's lock

    def post(self, event: asyncio.Event) -> None:
        """Sets the event soon, in the loop's thread. Called under the driver's lock."""
        self._posted.append(event)
        if len(self._posted) == 1:  # later events of this step are set by the same wake-up
            with contextlib.suppress(RuntimeError, ReferenceError):  # the event loop is closed or gone
                self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        with self._driver.locked():
            posted, self._posted = self._posted, []
        for event in posted:
            event.set()


class AsyncStream:
    """The outputs of one request, for a coroutine of the event loop that opened it. No method blocks the loop.

    Dropping it ends the request at the next step.
    """

    def __init__(self, driver: Driver, request: Request, mailbox: _Mailbox) -> None:
        self.request = request
        self._driver = driver
        self._changed = changed = asyncio.Event()
        self._claim = Claim(request)
        request.notify = lambda _: mailbox.post(changed)  # without a reference to this object, which may be dropped
        driver.submit(request)

    async def next_output(self) -> RequestOutput:
        """Waits for a change and returns everything so far. Raises what made the request fail."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            with self._driver.locked():
                self._check()
                if self.request.changed:
                    return self.request.take_output()

    async def next_deltas(self) -> list[CompletionDelta]:
        """Waits for a change and returns what is new of each completion that changed. Raises what made the request fail."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            with self._driver.locked():
                self._check()
                if deltas := self.request.take_deltas():
                    return deltas

    @property
    def finished(self) -> bool:
        return self.request.finished

    def close(self) -> None:
        """Ends the request if it is not finished."""
        self._driver.abort([self.request])

    def _check(self) -> None:
        if self.request.error is not None:
            raise self.request.error


class AsyncStreams:
    """Opens the streams of one engine."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._mailboxes: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Mailbox] = weakref.WeakKeyDictionary()

    def open(self, request: Request) -> AsyncStream:
        """Queues a request. Its refusal is raised when the stream is read. Called in a running event loop."""
        loop = asyncio.get_running_loop()
        mailbox = self._mailboxes.get(loop)
        if mailbox is None:
            mailbox = self._mailboxes[loop] = _Mailbox(loop, self._driver)
        return AsyncStream(self._driver, request, mailbox)
