"""Random JSON schemas of the keywords that llguidance knows, most of them satisfied by short texts.

Hypothesis does not make them, since what it draws depends on the modules that are loaded.
"""

from __future__ import annotations

import random
from typing import Any

Schema = dict[str, Any]
NAMES = ["a", "b", "long name", "naïve", 'quo"te', "x_1"]
SCALARS: list[Any] = [None, True, False, -7, 0, 12, 99, "", "red", "Grüße", "a\nb", '"\\']
PATTERNS = ["^[a-c]{1,3}$", "^(yes|no)$", r"^\d{2}-\d{2}$", "^[^ ]{1,4}$", "^x?[0-9]$", "[0-9]"]


class SchemaMaker:
    """Draws schemas."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def schema(self) -> Schema:
        kind = self._random.randrange(6)
        if kind == 0:  # a list of itself, by way of a definition
            node = self._object(2)
            node["properties"]["next"] = {"$ref": "#/$defs/node"}
            return {"$defs": {"node": node}, "type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 2}
        return self._object(2) if kind < 3 else self._any(2)

    def _chance(self, one_in: int) -> bool:
        return self._random.randrange(one_in) == 0

    def _any(self, depth: int) -> Schema:
        kinds = [self._string, self._integer, self._number, self._scalar]
        if depth and self._chance(2):
            return self._random.choice([self._array, self._object, self._any_of])(depth - 1)
        return self._random.choice(kinds)()

    def _string(self) -> Schema:
        kind, low = self._random.randrange(3), self._random.randrange(4)
        if kind == 0:
            return {"type": "string", "minLength": low, "maxLength": low + self._random.randrange(6)}
        if kind == 1:
            return {"type": "string", "pattern": self._random.choice(PATTERNS)}
        return {"type": "string", "format": self._random.choice(["uuid", "ipv4", "date"])}

    def _integer(self) -> Schema:
        low = self._random.randint(-2000, 2000)
        schema: Schema = {"type": "integer", "maximum": low + self._random.randint(10, 3000)}
        schema["minimum" if self._chance(2) else "exclusiveMinimum"] = low
        if self._chance(4):
            schema["multipleOf"] = self._random.randint(2, 10)
        return schema

    def _number(self) -> Schema:
        low = self._random.randint(-50, 50)
        return {"type": "number", "minimum": low, "maximum": low + self._random.randint(1, 90)}

    def _scalar(self) -> Schema:
        kind = self._random.randrange(4)
        if kind == 0:
            return {"type": "boolean"}
        if kind == 1:
            return {"type": ["boolean", "null"]}
        values = self._random.sample(SCALARS, self._random.randint(1, 4))
        return {"const": values[0]} if kind == 2 else {"enum": values}

    def _array(self, depth: int) -> Schema:
        low = self._random.randrange(3)
        schema: Schema = {"type": "array", "items": self._any(depth), "minItems": low}
        schema["maxItems"] = low + self._random.randrange(3)
        if self._chance(3):
            schema["prefixItems"] = [self._any(depth) for _ in range(self._random.randint(1, 2))]
            schema["minItems"] = schema["maxItems"] = len(schema["prefixItems"])
        return schema

    def _object(self, depth: int) -> Schema:
        names = self._random.sample(NAMES, self._random.randrange(5))
        schema: Schema = {
            "type": "object",
            "properties": {name: self._any(depth) for name in names},
            "required": [name for name in names if self._chance(2)],
            "additionalProperties": False,
        }
        if self._chance(6):
            schema["additionalProperties"] = self._any(0)
        return schema

    def _any_of(self, depth: int) -> Schema:
        return {"anyOf": [self._any(depth) for _ in range(self._random.randint(1, 3))]}


def made_schemas(count: int) -> list[Schema]:
    """Returns `count` schemas, the same in every run."""
    return [SchemaMaker(seed).schema() for seed in range(count)]
