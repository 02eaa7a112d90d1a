"""Stop strings: the cut does not depend on how the text arrives, and shown text is never taken back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lynx_rt.text.stop_strings import StopFilter

PIECES = st.lists(st.text(alphabet="abc", max_size=5), max_size=12)
STOPS = st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=3)


def first_stop(text: str, stops: list[str]) -> tuple[int, int, str] | None:
    """Returns (start, end, stop) by the definition: the longest of those that end first."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            stop = max(ending, key=len)
            return end - len(stop), end, stop
    return None


def stream(pieces: list[str], stops: list[str], include: bool = False) -> tuple[list[str], StopFilter]:
    """Returns what a reader sees after each piece and at the end."""
    text = StopFilter(stops, include)
    deltas = []
    for piece in pieces:
        stopped = text.add(piece)
        deltas.append(text.take())
        if stopped:
            break
    text.finish()
    deltas.append(text.take())
    return deltas, text


@given(PIECES, STOPS, st.booleans())
def test_deltas_add_up_to_the_cut_text(pieces: list[str], stops: list[str], include: bool) -> None:
    deltas, text = stream(pieces, stops, include)
    whole = "".join(pieces)
    found = first_stop(whole, stops)
    expected = whole if found is None else whole[: found[1] if include else found[0]]
    assert "".join(deltas) == expected == text.text
    assert text.stopped_by == (None if found is None else found[2])


@given(PIECES, STOPS)
def test_only_what_may_become_a_stop_is_held_back(pieces: list[str], stops: list[str]) -> None:
    text = StopFilter(stops)
    arrived = shown = ""
    for piece in pieces:
        if text.add(piece):
            break
        arrived += piece
        shown += text.take()
        held = arrived[len(shown) :]
        assert arrived == shown + held
        assert not held or any(stop.startswith(held) and stop != held for stop in stops)


@given(st.text(alphabet="abc", max_size=12), STOPS, st.integers(0, 12))
def test_unarmed_text_cannot_complete_a_stop(whole: str, stops: list[str], armed_from: int) -> None:
    text = StopFilter(stops)
    stopped = False
    for place, char in enumerate(whole):
        stopped = text.add(char, armed=place >= armed_from)
        if stopped:
            break
    ends = [e for e in range(armed_from + 1, len(whole) + 1) if any(whole[:e].endswith(s) for s in stops)]
    text.finish()
    text.take()
    assert stopped == bool(ends)
    if ends:
        longest = max((s for s in stops if whole[: ends[0]].endswith(s)), key=len)
        assert text.text == whole[: ends[0] - len(longest)]
    else:
        assert text.text == whole


@pytest.mark.parametrize("pieces", [["hello\nQ: x"], list("hello\nQ: x"), ["hello\n", "Q", ": x"]])
def test_example(pieces: list[str]) -> None:
    deltas, text = stream(pieces, ["\nQ:"])
    assert "".join(deltas) == "hello" and text.stopped_by == "\nQ:"


def test_a_finished_filter_takes_no_more() -> None:
    text = StopFilter(["b"])
    assert text.add("ab") and text.add("more")
    assert text.take() == "a" and text.take() == ""
