"""What parsers of responses return: reasoning, content and tool calls, whole or as they grow."""

from __future__ import annotations

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
