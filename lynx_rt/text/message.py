"""What a message of a chat is. Apart from chat_messages, so that a prompt can be told from a chat without its imports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def is_message(value: Any) -> bool:
    """Whether a value looks like a message of a chat: a dict with a role, or an object that has one."""
    return "role" in value if isinstance(value, Mapping) else hasattr(value, "role")
