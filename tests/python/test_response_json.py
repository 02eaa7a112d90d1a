"""The scanner of JSON takes what Python's parser takes, piece by piece, and says where it ends."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lynx_rt.text.response.json_scanner import MAX_DEPTH, JsonScanner

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
JSON = st.tuples(VALUES, st.sampled_from([None, 1]), st.booleans()).map(
    lambda item: json.dumps(item[0], indent=item[1], ensure_ascii=item[2])
)
PARTS = [*'{}[]:,"\\ \n-+.eE0127utfalsern', "true", "false", "null", "NaN", "Infinity", "\\u00e4", "\\ud83d", '"a": ']
SOUP = st.lists(st.sampled_from(PARTS), max_size=12).map("".join)


def scan(text: str, size: int = 10**6) -> tuple[bool, int, str]:
    """Returns whether there is a value, where it ends or is wrong, and its text. size: of the pieces."""
    scanner, place, out = JsonScanner(), 0, ""
    while place < len(text) and not scanner.done and not scanner.failed:
        piece = text[place : place + size]
        end, scanned = scanner.scan(piece)
        place, out = place + end, out + scanned
    scanner.end()
    return scanner.done, place, out


def load(text: str) -> tuple[bool, Any]:
    """Returns whether Python's parser takes the text, but for NaN and infinity; and the value."""

    def refuse(word: str) -> None:
        raise ValueError(word)

    try:
        return True, json.loads(text, strict=False, parse_constant=refuse)
    except ValueError:
        return False, None


@given(
    st.one_of(JSON, SOUP, st.tuples(JSON, SOUP, st.integers(0, 50)).map(lambda t: t[0][: t[2]] + t[1] + t[0][t[2] :]))
)
@example("1.")
@example("-")
@example("01")
@example("1e")
@example('"\t"')
@example('{"a":1,}')
@example("[,]")
@example("")
@settings(max_examples=150)
def test_same_as_python(text: str) -> None:
    done, place, out = scan(text)
    taken, value = load(text[:place])
    assert done == taken
    if done:
        assert json.dumps(load(out)[1]) == json.dumps(value)
        json.loads(out)  # strict: control characters are escaped
    whole, _ = load(text)
    assert whole == (done and not text[place:].strip(" \t\r\n"))
    for size in (1, 3):
        assert scan(text, size) == (done, place, out)


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_depth_is_bounded(opening: str, closing: str) -> None:
    for depth, fits in ((MAX_DEPTH, True), (MAX_DEPTH + 1, False)):
        done, _, out = scan(opening * depth + "1" + closing * depth)
        assert done == fits
        if fits:
            json.loads(out)


def test_a_number_has_a_bound() -> None:
    assert scan("1" * 900)[0] and not scan("1" * 2000)[0]
