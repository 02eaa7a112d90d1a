"""ANLS, relaxed accuracy and VQA accuracy on cases made by hand from their definitions."""

from __future__ import annotations

import pytest

from lynx_rt.research.metrics import anls, edit_distance, normalise_vqa, relaxed_accuracy, vqa_accuracy


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [("", "", 0), ("abc", "", 3), ("", "ab", 2), ("kitten", "sitting", 3), ("flaw", "lawn", 2), ("same", "same", 0)],
)
def test_edit_distance(a: str, b: str, distance: int) -> None:
    assert edit_distance(a, b) == edit_distance(b, a) == distance


@pytest.mark.parametrize(
    ("text", "answers", "score"),
    [
        ("Oslo", ["oslo"], 1.0),
        ("  new   YORK\n", ["New York"], 1.0),
        ("Osla", ["Oslo"], 0.75),
        ("Oslo", ["Bern", "Osl"], 0.75),  # the best of the answers
        ("ab", ["ac"], 0.0),  # a distance of one half is too much
        ("abc", ["abx"], 2 / 3),
        ("42", ["4"], 0.0),
        ("", ["x"], 0.0),
        ("", [""], 1.0),
        ("No 1234", ["1234"], 1 - 3 / 7),
    ],
)
def test_anls(text: str, answers: list[str], score: float) -> None:
    assert anls(text, answers) == pytest.approx(score, abs=1e-12)


@pytest.mark.parametrize(
    ("text", "answers", "right"),
    [
        ("21", ["20"], True),  # exactly 5 %
        ("21.01", ["20"], False),
        ("19", ["20"], True),
        ("-19", ["-20"], True),
        ("-20", ["20"], False),
        ("0.0", ["0"], False),  # no share of 0: the texts are compared
        ("0", ["0"], True),
        ("0", ["20"], False),
        ("10%", ["0.1"], True),
        ("10%", ["10"], False),
        ("12 %", ["0.12"], True),
        ("Oak ", ["oak"], True),
        ("oaks", ["oak"], False),
        ("20 units", ["20"], False),
        ("nan", ["20"], False),
        ("inf", ["inf"], True),  # a text
        ("20", ["3", "20"], True),
        ("", ["20"], False),
        ("%", ["%"], True),
    ],
)
def test_relaxed_accuracy(text: str, answers: list[str], right: bool) -> None:
    assert relaxed_accuracy(text, answers) == float(right)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The red Circle.", "red circle"),
        ("Two", "2"),
        ("none", "0"),
        ("dont know", "don't know"),
        ("don't", "don't"),
        ("1,000 people", "1000 people"),
        ("black/white", "black white"),
        ("black / white", "black white"),
        ("well-known!", "well known"),
        ("3.5", "3.5"),
        ("3.", "3"),
        ("a\nb\tc", "b c"),  # the first word is an article
        ("", ""),
    ],
)
def test_normalise_vqa(text: str, normal: str) -> None:
    assert normalise_vqa(text) == normal


@pytest.mark.parametrize(
    ("agreeing", "score"),
    # One who agrees has n - 1 others, one who does not has n: (n * min(n - 1, 3) + (10 - n) * min(n, 3)) / 30.
    [(0, 0.0), (1, 9 / 30), (2, (2 * 1 + 8 * 2) / 30), (3, (3 * 2 + 7 * 3) / 30), (4, 1.0), (10, 1.0)],
)
def test_vqa_accuracy_of_ten_people(agreeing: int, score: float) -> None:
    answers = ["Yes."] * agreeing + ["no", "maybe", "2", "3", "4", "5", "6", "7", "8", "9"][agreeing:]
    assert vqa_accuracy("yes", answers) == pytest.approx(score, abs=1e-12)


def test_one_answer_stands_for_all_people() -> None:
    assert vqa_accuracy("Two", ["2"]) == 1.0 and vqa_accuracy("three", ["2"]) == 0.0
