"""Which engine gets a request (lynx_rt.integrations.placement)."""

from __future__ import annotations

import importlib.util
import itertools
import math
import subprocess
import sys
from pathlib import Path

import pytest

from lynx_rt import ValidationError, shipped_model
from lynx_rt.integrations.placement import Placement, PromptKey, prompt_key

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "python"
ENGINES = ["a", "b", "c"]
LONG = "You answer questions about ships. " * 40


def place(placement: Placement, request: str, body: dict) -> str:
    key = prompt_key(body)
    engine = placement.ranked(ENGINES, key)[0]
    placement.add(engine, request, key)
    return engine


def test_pack_fills_one_engine_before_the_next() -> None:
    placement = Placement("pack", 3)
    assert [place(placement, str(i), {}) for i in range(9)] == list("aaabbbccc")
    # All are full: the one with the fewest requests is next.
    assert [place(placement, str(i), {}) for i in range(9, 12)] == list("abc")
    for request in ("0", "3", "4", "5", "10"):
        placement.remove("a" if request == "0" else "b", request)
    # b has none, a and c more than their share.
    assert (placement.load("a"), placement.load("b"), placement.load("c")) == (3, 0, 4)
    assert place(placement, "20", {}) == "b"
    placement.remove("a", "1")
    assert place(placement, "21", {}) == "a", "the fuller one of those with room"
    assert placement.ranked(ENGINES, PromptKey()) == ["b", "a", "c"]


def test_spread_takes_the_engine_with_the_fewest_requests() -> None:
    placement = Placement("spread", 3)
    assert [place(placement, str(i), {}) for i in range(6)] == list("abcabc")
    placement.remove("b", "1")
    assert place(placement, "6", {}) == "b"


def test_prefix_finds_the_engine_that_had_the_prompt() -> None:
    placement = Placement("prefix", 8)
    assert [place(placement, str(i), {"prompt": char * 400}) for i, char in enumerate("xyz")] == list("abc")
    for i in range(3):
        placement.remove(ENGINES[i], str(i))
    for i, char in enumerate("zxy"):
        engine = place(placement, f"again {i}", {"prompt": char * 400 + "?"})
        assert engine == "cab"[i]
        placement.remove(engine, f"again {i}")
    # A chat finds what the same chat before it had, and a salt of its own finds nothing.
    first = {"messages": [{"role": "system", "content": LONG}]}
    placement.add("c", "chat", prompt_key(first))
    placement.remove("c", "chat")
    longer = {"messages": [*first["messages"], {"role": "user", "content": "Which?"}]}
    assert placement.ranked(ENGINES, prompt_key(longer))[0] == "c"
    assert placement.ranked(ENGINES, prompt_key(longer | {"cache_salt": "s"}))[0] == "a"


def test_expert_joins_like_prompts() -> None:
    placement = Placement("expert", 8)
    sums, sorts = (
        [{"prompt": text.format(i, 7 * i)} for i in range(20)]
        for text in ("Q: {} times {} = ?", "Sort the list {}, {}")
    )
    where = {"sum": [], "sort": []}
    for i in range(12):
        where["sum"].append(place(placement, f"sum {i}", sums[i]))
        where["sort"].append(place(placement, f"sort {i}", sorts[i]))
        if i >= 2:
            placement.remove(where["sum"][i - 2], f"sum {i - 2}")
            placement.remove(where["sort"][i - 2], f"sort {i - 2}")
    engines = [place_ for kind in where.values() for place_ in kind]
    assert all(engines.count(name) <= 1.5 * len(engines) / 3 for name in ENGINES), (
        "no engine has much more than its share"
    )
    alike = sum(a == b for kind in where.values() for a, b in itertools.pairwise(kind[3:]))
    mixed = sum(a == b for a, b in zip(where["sum"][4:], where["sort"][4:]))
    assert alike > mixed


@pytest.mark.parametrize("policy", ["prefix", "expert"])
def test_affinity_loads_no_engine_much_beyond_the_mean(policy: str) -> None:
    placement = Placement(policy, 8)
    for i in range(60):
        place(placement, str(i), {"prompt": LONG + str(i)})
        loads = [placement.load(name) for name in ENGINES]
        assert max(loads) <= max(math.ceil((i + 1) / 3), 1.25 * (i + 1) / 3)


def test_engines_that_are_gone_are_forgotten() -> None:
    placement = Placement("pack", 8)
    place(placement, "1", {})
    placement.keep(["b"])
    assert placement.load("a") == 0
    placement.remove("a", "1")
    placement.remove("b", "unknown")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"prompt": None},
        {"prompt": 5},
        {"prompt": [[1, 2], [3]]},
        {"prompt": ["a", "b"]},
        {"messages": "x"},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "\ud800"}]}]},
        {"input": [{"role": "user", "content": None}], "cache_salt": 7},
    ],
)
def test_any_body_has_a_key(body: dict) -> None:
    assert prompt_key(body) == prompt_key(body)


def test_wrong_values() -> None:
    with pytest.raises(ValidationError, match="policy must be one of pack"):
        Placement("fill", 1)
    with pytest.raises(ValidationError, match="fill must be at least 1"):
        Placement("pack", 0)


def test_without_ray_the_extra_is_named() -> None:
    code = (
        "import sys; sys.modules['ray'] = None\n"
        "from lynx_rt import LynxError\n"
        "try:\n    import lynx_rt.integrations.ray_serve\n"
        "except LynxError as error: print(error)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True).stdout
    assert 'Ray Serve needs the package ray: pip install "lynx_rt[ray]"' in out


def test_the_batch_example_answers_rows() -> None:
    """examples/python/ray_batch.py, without Ray around it: a row that is refused has an error of its own."""
    spec = importlib.util.spec_from_file_location("ray_batch", EXAMPLES / "ray_batch.py")
    assert spec is not None and spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    predictor = example.Predictor(shipped_model(), {"num_threads": 1})
    prompts = ["Q: 12 times 22 = ?\nA:", "x", "Q: 11 times 22 = ?\nA:"]
    params = [{"temperature": 0}, {"temperature": -1}, {"temperature": 0}]
    for _ in range(2):  # an actor gets one batch after the other
        rows = predictor({"prompt": prompts, "sampling_params": params})
        assert rows["prompt"] == prompts and rows["generated_text"] == [" 264", "", " 242"]
        assert rows["error"][0] == rows["error"][2] == "" and "temperature" in rows["error"][1]
        assert rows["num_generated_tokens"][1] == 0 < rows["num_generated_tokens"][0]
