"""The metrics of public question sets on pictures: ANLS (DocVQA), relaxed accuracy (ChartQA) and VQA accuracy.

Each function gives the score of one question, 0..1, from the text of an answer and the expected answers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final

_ANLS_THRESHOLD: Final = 0.5
_RELATIVE_TOLERANCE: Final = 0.05
_NUMBERS: Final = {"none": "0"} | {
    word: str(number)
    for number, word in enumerate("zero one two three four five six seven eight nine ten".split())  # noqa: SIM905
}
_ARTICLES: Final = ("a", "an", "the")
_PUNCTUATION: Final = ';/[]"{}()=+\\_-><@`,?!'
_CONTRACTED: Final = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's how'd how'll "
    "how's I'd've I'm I've isn't it'd it'd've it'll let's ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock "
    "oughtn't shan't she'd've should've shouldn't shouldn't've somebody'd somebody'll somebody's someone'd someone'll someone's "
    "something'd something'll that'd that'd've that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas "
    "wasn't we'd've we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll "
    "why're why's won't would've wouldn't wouldn't've y'all you'd you'd've you'll you're you've"
)
_CONTRACTIONS: Final = {word.replace("'", "").lower(): word for word in _CONTRACTED.split()}


def anls(text: str, answers: Sequence[str]) -> float:
    """Returns the best of 1 - d over the expected answers, where d < 0.5, else 0 (Biten et al., ICCV 2019; DocVQA).

    d: edit distance over the longer length, without regard to case and to the number of blanks.
    """
    best = 0.0
    for answer in answers:
        found, wanted = (" ".join(words.lower().split()) for words in (text, answer))
        distance = edit_distance(found, wanted) / max(len(found), len(wanted), 1)
        best = max(best, 1 - distance if distance < _ANLS_THRESHOLD else 0.0)
    return best


def edit_distance(a: str, b: str) -> int:
    """Returns the least number of insertions, deletions and replacements of a character that make b of a (Levenshtein)."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, right in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (left != right))
    return row[-1]


def relaxed_accuracy(text: str, answers: Sequence[str]) -> float:
    """Returns 1 if the text is a number within 5 % of an expected one, or else an expected answer without regard to case
    (Masry et al., ChartQA, ACL Findings 2022).

    "12%" is 0.12. An expected 0 must be met exactly, as a text.
    """
    return float(any(_relaxed_match(text.strip(), answer.strip()) for answer in answers))


def _relaxed_match(found: str, wanted: str) -> bool:
    value, target = _number(found), _number(wanted)
    if value is not None and target:
        return abs(value - target) <= _RELATIVE_TOLERANCE * abs(target)
    return found.lower() == wanted.lower()


def _number(text: str) -> float | None:
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def vqa_accuracy(text: str, answers: Sequence[str]) -> float:
    """Returns the mean over the people of min(n / 3, 1), n: how many of the other people gave this answer (Antol et al., ICCV 2015; VQA v2).

    answers: one per person, ten in VQA v2. A single answer stands for people who all agree. All are compared as normalise_vqa() gives them.
    """
    if len(answers) == 1:
        answers = [answers[0]] * 10
    found = normalise_vqa(text)
    same = [normalise_vqa(answer) == found for answer in answers]
    return sum(min((sum(same) - mine) / 3, 1.0) for mine in same) / len(same)


def normalise_vqa(text: str) -> str:
    """Returns a text as the evaluation of VQA compares it: lower case, no punctuation and articles, numbers up to ten as digits,
    contractions with their apostrophe.

    A punctuation mark beside a blank is dropped, as are all where a comma stands between digits; another one becomes a blank. A full stop
    stays before a digit alone.
    """
    text = text.replace("\n", " ").replace("\t", " ").strip()
    grouped = re.search(r"\d,\d", text) is not None
    cleaned = text
    for mark in _PUNCTUATION:
        beside_blank = f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if beside_blank or grouped else " ")
    cleaned = re.sub(r"\.(?!\d)", "", cleaned)
    words = [_NUMBERS.get(word, word) for word in cleaned.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


METRICS: Final[Mapping[str, Callable[[str, Sequence[str]], float]]] = {
    "anls": anls,
    "relaxed": relaxed_accuracy,
    "vqa": vqa_accuracy,
}
