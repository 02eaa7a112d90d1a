"""What parsers of responses return: reasoning, content and tool calls, whole or as they grow."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(slots=True)
class ToolCall:
    """A function that the model wants to be called."""

    id: str
    name: str
    arguments: str  # the JSON text of an object


@dataclass(slots=True)
class ParsedResponse:
    """The parts of a whole output."""

    content: str | None  # None where there are only tool calls
    reasoning: str | None  # None where there is none
    tool_calls: list[ToolCall]
    failed: bool  # a malformed tool call stands in `content`, as the model wrote it

    @staticmethod
    def of(deltas: Iterable[ResponseDelta], failed: bool = False) -> ParsedResponse:
        """Returns the response that grew by these. Calls that were given up, whose arguments are no JSON, are left out."""
        whole = ResponseDelta.joined(deltas)
        calls = [
            ToolCall(call.id or "", call.name or "", call.arguments)
            for call in whole.tool_calls
            if _is_json(call.arguments)
        ]
        return ParsedResponse(
            None if calls and not whole.content else whole.content, whole.reasoning or None, calls, failed
        )


@dataclass(slots=True)
class ToolCallDelta:
    """What a tool call grew by. Its first delta has `id` and `name`, later ones have None there."""

    index: int  # 0, 1, 2, ... in order of the calls
    id: str | None
    name: str | None
    arguments: str  # the next part of the JSON text


@dataclass(slots=True)
class ResponseDelta:
    """What a response grew by. False where it did not."""

    content: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCallDelta] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.content or self.reasoning or self.tool_calls)

    @staticmethod
    def joined(deltas: Iterable[ResponseDelta]) -> ResponseDelta:
        """Returns several deltas that follow each other as one."""
        content: list[str] = []
        reasoning: list[str] = []
        calls: dict[int, tuple[ToolCallDelta, list[str]]] = {}
        for delta in deltas:
            content.append(delta.content)
            reasoning.append(delta.reasoning)
            for call in delta.tool_calls:
                calls.setdefault(call.index, (call, []))[1].append(call.arguments)
        joined = [ToolCallDelta(first.index, first.id, first.name, "".join(parts)) for first, parts in calls.values()]
        return ResponseDelta("".join(content), "".join(reasoning), joined)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
