"""Hands requests' outputs to asyncio. A step wakes the event loop once, and takes the lock once, for all requests in it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import weakref
from collections.abc import Sequence

from lynx_rt.engine.driver import Driver
from lynx_rt.engine.outputs import CompletionDelta, RequestOutput
from lynx_rt.engine.request import Claim, Request


class _Inbox:
    """What has come for one stream. It has no reference to the stream, which may be dropped."""

    def __init__(self, request: Request, as_deltas: bool) -> None:
        self.deltas: list[CompletionDelta] = []
        self.changed = False
        self.error: BaseException | None = None
        self._request = request
        self._as_deltas = as_deltas
        self._waiter: asyncio.Future[None] | None = None

    def fill(self) -> None:
        """Takes what is new. Called under the driver's lock."""
        self.error = self._request.error
        self.changed = True
        if self._as_deltas:
            self.deltas += self._request.take_deltas()

    def wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def next_fill(self) -> asyncio.Future[None]:
        self._waiter = asyncio.get_running_loop().create_future()
        return self._waiter

    def check(self) -> None:
        """Notes that what has come is being read, and raises what made the request fail."""
        self.changed = False
        if self.error is not None:
            raise self.error


class _Mailbox:
    """Fills the inboxes of one event loop, in its thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, driver: Driver) -> None:
        self._loop = weakref.proxy(loop)  # the table of mailboxes must not keep the loop
        self._driver = driver
        self._posted: list[_Inbox] = []  # guarded by the driver's lock

    def post(self, inbox: _Inbox, _: Request) -> None:
        """Has the inbox filled soon. Called under the driver's lock, mostly by the thread that steps."""
        self._posted.append(inbox)
        if len(self._posted) == 1:  # the same wake-up serves what comes later in this step
            self._driver.wake_after_step(self._wake)

    def _wake(self) -> None:
        with contextlib.suppress(RuntimeError, ReferenceError):  # the event loop is closed or gone
            self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        with self._driver.locked():
            posted, self._posted = self._posted, []
            for inbox in posted:
                inbox.fill()
        for inbox in posted:
            inbox.wake()


class AsyncStream:
    """The outputs of one request, for a coroutine of the event loop that opened it. No method blocks the loop.

    Dropping it ends the request at the next step.
    """

    def __init__(self, driver: Driver, request: Request, mailbox: _Mailbox, as_deltas: bool) -> None:
        self.request = request
        self._driver = driver
        self._inbox = inbox = _Inbox(request, as_deltas)
        self._claim = Claim(request)
        request.notify = functools.partial(mailbox.post, inbox)
        driver.submit(request)

    async def next_output(self) -> RequestOutput:
        """Waits for a change and returns everything so far. Raises what made the request fail."""
        inbox = self._inbox
        while True:
            if not inbox.changed:
                await inbox.next_fill()
            inbox.check()
            with self._driver.locked():
                if self.request.changed:
                    return self.request.take_output()

    async def next_deltas(self) -> list[CompletionDelta]:
        """Waits for a change and returns what is new of each completion that changed; for a stream that was opened for deltas.

        Raises what made the request fail.
        """
        inbox = self._inbox
        while True:
            if not inbox.changed:
                await inbox.next_fill()
            inbox.check()
            if deltas := inbox.deltas:
                inbox.deltas = []
                return deltas

    @property
    def finished(self) -> bool:
        return self.request.finished

    def close(self) -> None:
        """Ends the request if it is not finished."""
        self._driver.abort([self.request])


class AsyncStreams:
    """Opens the streams of one engine."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._mailboxes: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Mailbox] = weakref.WeakKeyDictionary()

    def open_together(self, requests: Sequence[Request]) -> list[AsyncStream]:
        """Queues requests for deltas so that no step begins between them: their prompts run in step, whatever the timing."""
        with self._driver.locked():
            return [self.open(request, as_deltas=True) for request in requests]

    def open(self, request: Request, as_deltas: bool) -> AsyncStream:
        """Queues a request. Its refusal is raised when the stream is read. Called in a running event loop."""
        loop = asyncio.get_running_loop()
        mailbox = self._mailboxes.get(loop)
        if mailbox is None:
            mailbox = self._mailboxes[loop] = _Mailbox(loop, self._driver)
        return AsyncStream(self._driver, request, mailbox, as_deltas)
