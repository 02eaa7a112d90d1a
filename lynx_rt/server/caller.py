"""Who sent a request, and with whom expert selection may mix it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import Request

from lynx_rt.server.protocol import GenerationFields
from lynx_rt.server.settings import Settings


@dataclass(frozen=True)
class Caller:
    request_id: str  # the client's X-Request-Id, or one of ours
    api_key: str | None
    isolation_group: str | None  # of the header X-Isolation-Group
    trace_headers: Mapping[str, str]  # of W3C's trace context


def caller_of(request: Request) -> Caller:
    state = request.scope["state"]
    headers = request.headers
    trace = {name: headers[name] for name in ("traceparent", "tracestate") if name in headers}
    return Caller(state["request_id"], state["api_key"], headers.get("x-isolation-group"), trace)


def isolation(caller: Caller, body: GenerationFields, settings: Settings) -> dict[str, Any]:
    """Returns the fields of SamplingParams that keep a request apart from others: isolation_group and cache_salt.

    A group that the client names lies within its key's group, so that no client gets into another's. Requests of different
    groups share no prefix cache either, because its speed tells what others have sent.
    """
    named = body.isolation_group or caller.isolation_group
    fields: dict[str, Any] = {}
    if settings.batch_isolation == "key":
        key = hashlib.sha256((caller.api_key or "").encode()).hexdigest()[:16]
        fields["isolation_group"] = key if named is None else f"{key}:{named}"
    elif named is not None:
        fields["isolation_group"] = named
    salt = [text for text in (fields.get("isolation_group"), body.cache_salt) if text is not None]
    if salt:
        fields["cache_salt"] = "\n".join(salt)
    return fields
