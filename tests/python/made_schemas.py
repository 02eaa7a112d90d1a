"""Random JSON schemas of the keywords that llguidance knows, each satisfied by short texts."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

Schema = dict[str, Any]
NAMES = ["a", "b", "long name", "naïve", 'quo"te', "x_1"]
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-99, 99), st.sampled_from(["", "red", "Grüße", "a\nb", '"\\'])
)


def strings() -> st.SearchStrategy[Schema]:
    lengths = st.tuples(st.integers(0, 3), st.integers(0, 5)).map(
        lambda pair: {"type": "string", "minLength": pair[0], "maxLength": pair[0] + pair[1]}
    )
    patterns = st.sampled_from(["^[a-c]{1,3}$", "^(yes|no)$", r"^\d{2}-\d{2}$", "^[^ ]{1,4}$", "^x?[0-9]$"])
    formats = st.sampled_from(["uuid", "ipv4", "date"])
    return st.one_of(
        lengths,
        patterns.map(lambda pattern: {"type": "string", "pattern": pattern}),
        formats.map(lambda name: {"type": "string", "format": name}),
    )


@st.composite
def integers(draw: st.DrawFn) -> Schema:
    low = draw(st.integers(-2000, 2000))
    schema: Schema = {"type": "integer", "minimum": low, "maximum": low + draw(st.integers(10, 3000))}
    if draw(st.booleans()):
        schema["exclusiveMinimum"] = schema.pop("minimum")
    if draw(st.integers(0, 3)) == 0:
        schema["multipleOf"] = draw(st.integers(2, 10))
    return schema


@st.composite
def numbers(draw: st.DrawFn) -> Schema:
    low = draw(st.integers(-50, 50))
    return {"type": "number", "minimum": low, "maximum": low + draw(st.integers(1, 90))}


@st.composite
def arrays(draw: st.DrawFn, items: st.SearchStrategy[Schema]) -> Schema:
    low = draw(st.integers(0, 2))
    schema: Schema = {"type": "array", "items": draw(items), "minItems": low, "maxItems": low + draw(st.integers(0, 2))}
    if draw(st.integers(0, 2)) == 0:
        schema["prefixItems"] = draw(st.lists(items, min_size=1, max_size=2))
        schema["minItems"] = schema["maxItems"] = len(schema["prefixItems"])
    return schema


@st.composite
def objects(draw: st.DrawFn, values: st.SearchStrategy[Schema]) -> Schema:
    properties = draw(st.dictionaries(st.sampled_from(NAMES), values, max_size=4))
    schema: Schema = {"type": "object", "properties": properties, "additionalProperties": False}
    if properties:
        schema["required"] = draw(st.lists(st.sampled_from(sorted(properties)), unique=True))
    if draw(st.integers(0, 3)) == 0:
        schema["additionalProperties"] = draw(values)
    return schema


def schemas() -> st.SearchStrategy[Schema]:
    leaves = st.one_of(
        strings(),
        integers(),
        numbers(),
        st.just({"type": "boolean"}),
        st.just({"type": ["boolean", "null"]}),
        st.lists(SCALARS, min_size=1, max_size=4).map(lambda values: {"enum": values}),
        SCALARS.map(lambda value: {"const": value}),
    )
    nested = st.recursive(
        leaves,
        lambda inner: st.one_of(
            arrays(inner), objects(inner), st.lists(inner, min_size=1, max_size=3).map(lambda any_of: {"anyOf": any_of})
        ),
        max_leaves=6,
    )
    # A list of itself, by way of a definition.
    recursive = objects(nested).map(
        lambda item: {
            "$defs": {"node": item | {"properties": item["properties"] | {"next": {"$ref": "#/$defs/node"}}}},
            "type": "array",
            "items": {"$ref": "#/$defs/node"},
            "maxItems": 2,
        }
    )
    return st.one_of(nested, objects(nested), recursive)


def made_schemas(count: int) -> list[Schema]:
    """Returns `count` schemas, the same in every run."""
    found: list[Schema] = []

    @settings(max_examples=count, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(schemas())
    def collect(schema: Schema) -> None:
        found.append(schema)

    collect()
    return found
