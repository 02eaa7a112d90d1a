"""Parses what models generate into reasoning, content and tool calls, whole or while it is generated.

format = detect_format(tokenizer)
parser = format.parser(tools=tools, prompt_tail=prompt)
for text in pieces:
    delta = parser.feed(text)
delta = parser.finish(finish_reason)
"""

from lynx_rt.text.response.formats import REASONING_PARSERS, TOOL_PARSERS, ResponseFormat, detect_format
from lynx_rt.text.response.parser import ResponseParser
from lynx_rt.text.response.results import ParsedResponse, ResponseDelta, ToolCall, ToolCallDelta

__all__ = [
    "REASONING_PARSERS",
    "TOOL_PARSERS",
    "ParsedResponse",
    "ResponseDelta",
    "ResponseFormat",
    "ResponseParser",
    "ToolCall",
    "ToolCallDelta",
    "detect_format",
]
