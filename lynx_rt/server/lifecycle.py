"""Runs a server: binds its port at once, loads the model beside it, drains on SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
import uvloop

from lynx_rt.engine.bandwidth import memory_bandwidth
from lynx_rt.engine.engine import Engine
from lynx_rt.errors import LynxError
from lynx_rt.server.app import make_app
from lynx_rt.server.middleware import DirectSend
from lynx_rt.server.settings import Settings
from lynx_rt.server.state import ServerState

_log = logging.getLogger("lynx_rt.server")
_KEEP_ALIVE_CONNECTION = (
    75  # seconds; load balancers keep connections for 60, and must not meet one that was just closed
)
_SWITCH_SECONDS = 0.0005  # after which the event loop gives way to the thread that steps; Python's default is 5 ms
_BACKLOG = 2048


class Server:
    """One server. `run()` returns the exit code: 0 after a drain, 1 where the model could not be loaded."""

    def __init__(
        self, settings: Settings, say: Callable[[str], None] = lambda text: print(text, file=sys.stderr)
    ) -> None:
        self.settings = settings
        self.state = ServerState(settings)
        self._say = say
        self._signals = 0
        self._idle_since = time.monotonic()

    def run(self) -> int:
        with contextlib.closing(_bind(self.settings)) as listener:
            self._say(f"lynx-rt: listening on {self.url(listener)}, loading {self.settings.model}")
            if not self.settings.api_keys and self.settings.is_public:
                self._say("lynx-rt: warning: anyone who reaches this address may use it; --api-key asks for a key")
            sys.setswitchinterval(_SWITCH_SECONDS)
            uvloop.run(self._serve(listener))
        if self.settings.uds:
            with contextlib.suppress(OSError):
                os.unlink(self.settings.uds)
        self.state.close()
        return 1 if self.state.phase == "failed" else 0

    def url(self, listener: socket.socket) -> str:
        if self.settings.uds:
            return f"unix:{self.settings.uds}"
        host, port = listener.getsockname()[:2]
        scheme = "https" if self.settings.ssl_certfile else "http"
        shown = f"[{host}]" if ":" in host else host
        return f"{scheme}://{shown}:{port}{self.settings.root_path}"

    async def _serve(self, listener: socket.socket) -> None:
        config = uvicorn.Config(
            DirectSend(make_app(self.state)),
            log_level="warning",
            access_log=self.settings.access_log,
            timeout_keep_alive=_KEEP_ALIVE_CONNECTION,
            timeout_graceful_shutdown=5,
            server_header=False,
            lifespan="off",
            ssl_keyfile=self.settings.ssl_keyfile,
            ssl_certfile=self.settings.ssl_certfile,
        )
        self._uvicorn = _Uvicorn(config)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        self._tasks = [loop.create_task(self._load()), loop.create_task(self._watch())]
        try:
            await self._uvicorn.serve([listener])
        finally:
            for task in self._tasks:
                task.cancel()

    async def _load(self) -> None:
        state, start = self.state, time.monotonic()
        state.phase, state.load_started = "loading", start

        def progress(done: int, total: int) -> None:
            state.load_progress = done / total if total else 1.0

        try:
            engine = await asyncio.to_thread(
                lambda: Engine(self.settings.model, on_load_progress=progress, **self.settings.engine)
            )
            loaded = time.monotonic()
            rate = await asyncio.to_thread(memory_bandwidth, engine, self.settings.engine.get("num_threads"))
            if state.phase == "draining":
                engine.close()
                return
            if rate is not None:
                state.memory_bandwidth = rate
                state.metrics.set_memory_bandwidth(rate)
            state.metrics.set_startup_seconds("load", loaded - start)
            gc.collect()
            gc.freeze()  # what lives as long as the server is not looked through again while tokens wait
            state.set_ready(engine)
        except Exception as error:
            known = isinstance(error, (LynxError, OSError, ImportError))
            state.load_error = " ".join(str(error).split()) if known else f"unexpected {type(error).__name__}: {error}"
            state.phase = "failed"
            self._say(f"lynx-rt: error: {state.load_error}")
            self._uvicorn.should_exit = True
            return
        self._say(f"lynx-rt: ready after {time.monotonic() - start:.1f} s: {self._summary(engine)}")

    def _summary(self, engine: Engine) -> str:
        state = self.state
        return (
            f"{state.settings.served_model_names[0]} on {engine.device}, expert selection {state.policy}, "
            f"tool calls {state.format.tool_parser or 'not read'}, reasoning {state.format.reasoning_parser or 'not read'}, "
            f"context {engine.max_model_len}, at most {state.max_sequences} completions in flight"
        )

    async def _watch(self) -> None:
        """Says once in the log that steps do not end, with the place where the thread that steps is."""
        reported, period = False, min(1.0, self.settings.watchdog_seconds / 4)
        while True:
            start = time.monotonic()
            await asyncio.sleep(period)
            self.state.metrics.set_event_loop_lag(max(0.0, time.monotonic() - start - period))
            fault = self.state.health_fault()
            if fault and not reported and self.state.engine is not None:
                _log.error("%s; threads:\n%s", fault, _stacks())
            reported = fault is not None

    # Shutdown

    def _on_signal(self) -> None:
        self._signals += 1
        if self._signals > 1:
            self._uvicorn.force_exit = True
            self._uvicorn.should_exit = True
            return
        self.state.phase = "draining" if self.state.phase != "failed" else "failed"
        self._tasks.append(asyncio.get_running_loop().create_task(self._drain()))

    async def _drain(self) -> None:
        running = self.state.num_sequences
        if running:
            self._say(
                f"lynx-rt: {running} completions get {self.settings.shutdown_timeout:g} s; a second signal ends them"
            )
        end = time.monotonic() + self.settings.shutdown_timeout
        while self.state.num_sequences and time.monotonic() < end:
            await asyncio.sleep(0.02)
        if self.state.num_sequences:
            self._say(f"lynx-rt: {self.state.num_sequences} completions are cut off")
            self.state.cut_off()
            await asyncio.sleep(0.5)
        self._uvicorn.should_exit = True


class _Uvicorn(uvicorn.Server):
    """uvicorn without its signal handlers, which would end streams at once."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _bind(settings: Settings) -> socket.socket:
    """Returns the listening socket. A port that is taken fails here, before minutes of loading."""
    if settings.uds:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        address: Any = settings.uds
    else:
        family, _, _, _, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        where = settings.uds or f"{settings.host}:{settings.port}"
        raise LynxError(f"cannot listen on {where}: {error.strerror}", "port") from None
    return listener


def _stacks() -> str:
    import traceback

    frames = sys._current_frames()
    return "\n".join("".join(traceback.format_stack(frame)) for frame in frames.values())
