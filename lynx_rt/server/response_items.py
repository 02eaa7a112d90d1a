"""The output items of /v1/responses, and the events of their growth."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from lynx_rt.server.turn import growth, is_complete
from lynx_rt.text.response import ResponseDelta, ToolCallDelta

Event = tuple[str, dict[str, Any]]  # name, fields
_ITEM_OF_TEXT = {"content": "message", "reasoning": "reasoning"}
_PART_OF_TYPE = {"message": "output_text", "reasoning": "reasoning_text"}


class ResponseItems:
    """Items grow one at a time: reasoning, messages and function calls."""

    def __init__(self, names: Mapping[str, dict[str, str]] = MappingProxyType({})) -> None:
        """names: what a call is shown with instead of the name by which the model knows a function."""
        self._names = names
        self.items: list[dict[str, Any]] = []
        self._open: dict[str, Any] | None = None
        self._texts: list[str] = []  # of the open item
        self._logprobs: list[dict[str, Any]] = []  # of the open message
        self._pending: list[dict[str, Any]] = []  # of tokens whose text has not come out

    def feed(self, delta: ResponseDelta, logprobs: list[dict[str, Any]]) -> Iterator[Event]:
        """Adds what is new. logprobs: of its tokens; a message has those of the tokens that its text is of."""
        self._pending += logprobs
        for name, value in growth(delta):
            if isinstance(value, ToolCallDelta):
                if value.id is not None:
                    yield from self._close("completed")
                    name_fields = self._names.get(value.name or "", {"name": value.name})
                    yield from self._begin("function_call", call_id=value.id, **name_fields, arguments="")
                yield from self._grow_call(value.arguments)
            else:
                yield from self._grow_text(_ITEM_OF_TEXT[name], value)

    def finish(self, status: str) -> Iterator[Event]:
        """Ends the last item with its status. An answer without anything becomes an empty message."""
        if not self.items:
            yield from self._grow_text("message", "")
        yield from self._close(status)

    def drop_unfinished_calls(self) -> None:
        """Drops calls that the output ended in. What the model wrote of them is in a message, too."""
        self.items = [i for i in self.items if (i["type"], i["status"]) != ("function_call", "incomplete")]

    def _grow_text(self, kind: str, text: str) -> Iterator[Event]:
        part = _PART_OF_TYPE[kind]
        if self._open is None or self._open["type"] != kind:
            yield from self._close("completed")
            fixed: dict[str, Any] = {"summary": []} if kind == "reasoning" else {"role": "assistant"}
            yield from self._begin(kind, **fixed, content=[])
            yield "response.content_part.added", {**self._place(), "content_index": 0, "part": _part(part, "", [])}
        self._texts.append(text)
        fields: dict[str, Any] = {**self._place(), "content_index": 0, "delta": text}
        if kind == "message":
            fields["logprobs"] = self._pending
            self._logprobs += self._pending
        self._pending = []
        if text:
            yield f"response.{part}.delta", fields

    def _grow_call(self, arguments: str) -> Iterator[Event]:
        self._pending = []
        if arguments:
            self._texts.append(arguments)
            yield "response.function_call_arguments.delta", {**self._place(), "delta": arguments}

    def _begin(self, kind: str, **fields: Any) -> Iterator[Event]:
        prefix = {"message": "msg", "reasoning": "rs", "function_call": "fc"}[kind]
        item = {"id": f"{prefix}_{uuid.uuid4().hex}", "type": kind, "status": "in_progress", **fields}
        self._open = item
        self.items.append(item)
        yield "response.output_item.added", {"output_index": len(self.items) - 1, "item": dict(item)}

    def _close(self, status: str) -> Iterator[Event]:
        if self._open is None:
            return
        item, text = self._open, "".join(self._texts)
        place = self._place()
        if item["type"] == "function_call":
            item["arguments"] = text
            status = "completed" if is_complete(text) else "incomplete"
            yield (
                "response.function_call_arguments.done",
                {**place, "name": item["name"], "arguments": text},
            )
        else:
            kind = _PART_OF_TYPE[item["type"]]
            part = _part(kind, text, self._logprobs)
            item["content"] = [part]
            place["content_index"] = 0
            done = {"text": text, "logprobs": self._logprobs} if item["type"] == "message" else {"text": text}
            yield f"response.{kind}.done", {**place, **done}
            yield "response.content_part.done", {**place, "part": part}
        item["status"] = status
        yield "response.output_item.done", {"output_index": len(self.items) - 1, "item": item}
        self._open, self._texts, self._logprobs = None, [], []

    def _place(self) -> dict[str, Any]:
        return {"item_id": self.items[-1]["id"], "output_index": len(self.items) - 1}


def _part(kind: str, text: str, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
    part: dict[str, Any] = {"type": kind, "text": text}
    return {**part, "annotations": [], "logprobs": logprobs} if kind == "output_text" else part
