"""Settings of the server, as `lynx-rt serve` gives them; docs/serving.md explains each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MAX_STOPS = 64  # stop strings of a request; lm-eval and Continue send more than OpenAI's 4
MAX_STOP_LENGTH = 1024  # characters; of a bad word, too
MAX_BAD_WORDS = 128
MAX_PROMPTS = 1024  # of one completions request


@dataclass(frozen=True, kw_only=True)
class Settings:
    model: str  # folder, or name on the Hub
    served_model_names: tuple[str, ...]  # the first one is the model's id
    host: str = "127.0.0.1"
    port: int = 8000  # 0 = any free one
    uds: str | None = None  # a Unix socket instead of host and port
    root_path: str = ""  # prefix that a proxy in front has removed
    ssl_keyfile: str | None = None
    ssl_certfile: str | None = None
    api_keys: tuple[str, ...] = ()  # none = open to all
    allowed_origins: tuple[str, ...] = ()  # for browsers' pages of other origins
    access_log: bool = False
    max_body_bytes: int = 32 << 20
    max_num_queued_reqs: int | None = None  # None = 4 * max_num_seqs
    max_n: int = 128
    max_logprobs: int = 20
    request_timeout: float | None = None  # seconds that a request may take
    stall_timeout: float = 60.0  # seconds after which a client that does not read is dropped
    keep_alive_seconds: float = 15.0  # between comment lines in a stream that has nothing to send
    shutdown_timeout: float = 30.0  # seconds that running requests get after SIGTERM
    watchdog_seconds: float = 60.0  # without the end of a step, after which /health fails
    trust_request_chat_template: bool = False
    default_chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    reasoning_field: str = "both"  # "reasoning", "reasoning_content", "both", or "inline" = in the content
    thinking_token_budget: int | None = None  # of requests without one; None = no limit
    batch_isolation: str = (
        "none"  # "key": requests of one API key form a group; "group": requests that name the same one
    )
    allowed_media_domains: tuple[
        str, ...
    ] = ()  # hosts that images are fetched from; none = images come in requests alone
    media_timeout: float = 5.0  # seconds for the fetched images of a request
    max_media_bytes: int = 32 << 20  # of the fetched images of a request
    page: bool = True  # the built-in page at /
    expert_counts: bool | None = None  # whether GET /v1/lynx/experts answers; None = see `gives_expert_counts`
    metrics_per_layer: bool | None = None  # None = up to 64 layers
    otlp_traces_endpoint: str | None = None
    engine: Mapping[str, Any] = field(default_factory=dict)  # arguments of Engine

    @property
    def is_public(self) -> bool:
        """Whether other machines may reach the server."""
        return not self.uds and self.host not in ("127.0.0.1", "::1", "localhost")

    @property
    def gives_expert_counts(self) -> bool:
        """Whether clients may see how often each expert is read. Unless set, only where all clients are one party: they share the one API
        key, or this machine, and no batch isolation keeps them apart."""
        if self.expert_counts is not None:
            return self.expert_counts
        one_party = len(self.api_keys) == 1 or (not self.api_keys and not self.is_public)
        return one_party and self.batch_isolation == "none"
