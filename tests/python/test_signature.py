"""Signatures of prompts: from counts, and of an engine's requests."""

import numpy as np
import pytest

from lynx_rt import Engine, shipped_model
from lynx_rt.engine.signature import SIGNATURE_SIZE, signature

PROMPTS = [
    "Q: 17 times 23 = ?\nA:",
    "Write a short poem about the sea and the wind.",
    "def add(a, b):\n    return a + b\n\ndef mul(a, b):\n",
    "Translate to French: good morning, how are you today?",
    "9 8 7 6 5 4 3 2 1 0 9 8 7 6 5",
]


@pytest.fixture(scope="module")
def engine():
    with Engine(shipped_model(), num_threads=1, enable_return_routed_experts=True, max_num_batched_tokens=16,
                max_num_seqs=4, block_size=4) as engine:  # fmt: skip
        yield engine


def test_of_counts():
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 64, (40, 6, 4)).astype(np.int16)
    got = signature(ids)
    assert got.shape == (SIGNATURE_SIZE,) and got.dtype == np.float32 and np.linalg.norm(got) == pytest.approx(1)
    np.testing.assert_array_equal(signature(rng.permutation(ids)), got)  # rows have no order
    np.testing.assert_array_equal(signature(ids[..., ::-1]), got)  # nor have a row's choices
    np.testing.assert_allclose(signature(np.concatenate([ids, ids])), got, atol=1e-6)  # nor does the length count
    dropped = np.concatenate([ids, np.full((9, 6, 4), -1, np.int16)])
    np.testing.assert_array_equal(signature(dropped), got)
    assert abs(got @ signature(ids[:, ::-1])) < 0.9  # but layers do
    assert not signature(np.zeros((0, 6, 4), np.int16)).any()


def test_inner_products_are_those_of_the_counts():
    rng = np.random.default_rng(1)
    errors = []
    for _ in range(60):
        popular = rng.integers(0, 64, (2, 12))
        ids = [rng.choice(popular[i], (50, 8, 4)).astype(np.int16) for i in range(2)]
        ids[1][:25] = ids[0][:25]
        counts = [np.stack([np.bincount(x[:, layer].ravel(), minlength=64) for layer in range(8)]).ravel() for x in ids]
        cosine = counts[0] @ counts[1] / np.linalg.norm(counts[0]) / np.linalg.norm(counts[1])
        errors.append(signature(ids[0]) @ signature(ids[1]) - cosine)
    assert abs(np.mean(errors)) < 0.05 and np.std(errors) < 2 / np.sqrt(SIGNATURE_SIZE)


def test_equal_prompts_have_equal_signatures(engine):
    """Alone, beside others, in parts, and out of the prefix cache; the number of completions and tokens does not matter."""
    alone = [engine.generate(p, {"max_tokens": 1, "cache_salt": "x"})[0].prompt_signature for p in PROMPTS]
    together = engine.generate(PROMPTS, {"max_tokens": 5, "temperature": 1, "n": 2}, use_tqdm=False)
    for a, output in zip(alone, together, strict=True):
        np.testing.assert_array_equal(output.prompt_signature, a)
    cached = engine.generate(PROMPTS[1], {"max_tokens": 1})[0]
    assert cached.num_cached_tokens > 0
    np.testing.assert_array_equal(cached.prompt_signature, alone[1])


def test_a_prompt_is_nearest_to_itself_and_to_its_beginning(engine):
    whole = np.stack([o.prompt_signature for o in engine.generate(PROMPTS, {"max_tokens": 1}, use_tqdm=False)])
    cut = [engine.encode(p)[: len(engine.encode(p)) * 2 // 3] for p in PROMPTS]
    begun = np.stack([o.prompt_signature for o in engine.generate(cut, {"max_tokens": 1}, use_tqdm=False)])
    assert (whole @ whole.T).argmax(1).tolist() == [0, 1, 2, 3, 4]
    assert (begun @ whole.T).argmax(1).tolist() == [0, 1, 2, 3, 4]


def test_it_comes_with_the_first_token(engine):
    ids = engine.encode(PROMPTS[1] * 4)[:40]
    outputs = list(
        engine.stream(ids, {"max_tokens": 3, "report_progress": True, "cache_salt": "y", "ignore_eos": True})
    )
    known = [output.prompt_signature is not None for output in outputs]
    assert known == [len(output.outputs[0].token_ids) > 0 for output in outputs] and known[:2] == [False, False]
    assert all(np.array_equal(o.prompt_signature, outputs[-1].prompt_signature) for o in outputs[2:])


def test_none_without_routed_experts():
    with Engine(shipped_model(), num_threads=1) as engine:
        assert engine.generate("1", {"max_tokens": 1})[0].prompt_signature is None
