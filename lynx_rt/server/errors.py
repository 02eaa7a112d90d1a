"""Errors as OpenAI's clients expect them: a JSON body with message, type, param and code, and headers for retries."""

from __future__ import annotations

import http
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lynx_rt.errors import EngineClosedError, LynxError, QueueFullError, UnsupportedModelError, ValidationError, shown

_TYPE_OF_STATUS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "server_error",
    501: "not_supported_error",
    503: "overloaded_error",
    504: "timeout_error",
}
_MAX_MESSAGE = 2000
_MAX_FAULTS = 10  # reported of one body
# Clients retry errors of these kinds by themselves; x-should-retry ends that where a second try must fail like the first.
_RETRIED = (408, 409, 429)
# A file of this machine, which clients must not learn of; the server's own routes are no secret.
_PATH = re.compile(r"(?<![\w:/])/(?!v1/)(?:[\w.@+-]+/)+[\w.@+-]+")


class ApiError(Exception):
    """An answer other than 200. param: the request's field at fault.  retry_after: seconds.  extra: further fields of the body."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.retry_after = retry_after
        self.extra = dict(extra or {})

    @property
    def type(self) -> str:
        return _TYPE_OF_STATUS.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")

    def body(self) -> dict[str, Any]:
        """Returns OpenAI's form of the body."""
        message = _clean(self.message)
        error = {"message": message, "type": self.type, "param": self.param, "code": self.code or self.status}
        return {"error": {**error, **self.extra}}

    def anthropic_body(self) -> dict[str, Any]:
        """Returns Anthropic's form of the body."""
        kind = "api_error" if self.type == "server_error" else self.type
        message = self.message
        if "n_prompt_tokens" in self.extra:  # Claude Code reads this form, and then shortens the conversation
            numbers = f"{self.extra['n_prompt_tokens']} tokens > {self.extra['n_ctx'] - 1} maximum"
            message = f"prompt is too long: {numbers}. {message}"
        return {"type": "error", "error": {"type": kind, "message": _clean(message), **self.extra}}

    def headers(self) -> dict[str, str]:
        headers = {}
        if self.retry_after is not None:
            headers["Retry-After"] = str(self.retry_after)
        elif self.status in _RETRIED or self.status >= 500:
            headers["x-should-retry"] = "false"
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return headers


def is_anthropic(path: str) -> bool:
    """Whether a path's errors have Anthropic's form."""
    return "/v1/messages" in path


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    return ApiError(400, message, param=param, code=code)


def context_error(prompt_length: int, max_model_len: int) -> ApiError:
    """Returns the answer for a prompt that fills the context. Clients search it for "maximum context length is"."""
    return ApiError(
        400,
        f"This model's maximum context length is {max_model_len} tokens. However, your prompt contains {prompt_length} input "
        "tokens, and at least one must be left for the output. Shorten the prompt, or set truncate_prompt_tokens.",
        param="input_tokens",
        code="context_length_exceeded",
        extra={"n_prompt_tokens": prompt_length, "n_ctx": max_model_len},
    )


def from_exception(error: BaseException) -> ApiError:
    """Returns the answer for an exception of the engine or of a handler."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, QueueFullError):
        return ApiError(503, str(error), code="queue_full", retry_after=1)
    if isinstance(error, EngineClosedError):
        return ApiError(503, "the server is shutting down", code="shutting_down", retry_after=5)
    if isinstance(error, UnsupportedModelError):
        return ApiError(501, str(error), param=error.field or None)
    if isinstance(error, ValidationError):
        return bad_request(str(error), error.field or None)
    if isinstance(error, LynxError):
        return ApiError(500, str(error), param=error.field or None)
    return ApiError(500, f"internal error ({type(error).__name__}); the server's log has more")


def from_validation(faults: Sequence[Mapping[str, Any]]) -> ApiError:
    """Returns the answer for pydantic's list of faults. It names each field; values are cut, because they may be large."""
    texts, first = [], None
    for fault in faults[:_MAX_FAULTS]:
        place = [str(part) for part in fault.get("loc", ()) if part != "body"]
        if not place and isinstance(fault.get("input"), bytes):
            return bad_request("the body must be JSON, under the header Content-Type: application/json")
        if fault.get("type") == "json_invalid":
            reason = (fault.get("ctx") or {}).get("error", "it cannot be parsed")
            return bad_request(f"the body is not valid JSON: {reason}")
        # pydantic adds the name of a union's member to the place; names of fields are lower-case
        place = [part for part in place if re.fullmatch(r"[a-z_][a-z0-9_]*|\d+", part)]
        name = ".".join(place)
        first = first or name
        texts.append(f"{name or 'body'}: {fault.get('msg', 'invalid')}, got {shown(fault.get('input'))}")
    more = len(faults) - len(texts)
    return bad_request("; ".join(texts) + (f"; and {more} more" if more > 0 else ""), first or None)


def from_status(status: int, detail: str = "") -> ApiError:
    return ApiError(status, detail or http.HTTPStatus(status).phrase)


def _clean(message: str) -> str:
    """Returns a message without paths of this machine, and not longer than a client can show."""
    text = _PATH.sub("<path>", message)
    return text if len(text) <= _MAX_MESSAGE else text[:_MAX_MESSAGE] + "..."
