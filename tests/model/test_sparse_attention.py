"""DeepSeek-V3.2 and GLM-5: attention is dense up to index_topk tokens, and no request may be longer."""

from __future__ import annotations

from dataclasses import replace

import family_models_latent
import pytest
from family_parity import Row, engine, greedy, write, written_once

from lynx_rt import _C, UnsupportedModelError, ValidationError

TOP = 100
ROWS = [
    next(r for r in family_models_latent.ROWS if r.id == name) for name in ("deepseek_v32-groups", "glm_moe_dsa-shared")
]
REASON = ["max_position_embeddings", "128", "index_topk = 100", "sparse attention"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return written_once(tmp_path_factory)


def has_words(text: str, words: list[str]) -> bool:
    return all(word in text for word in words)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_context_ends_at_index_topk(checkpoint, row):
    path = checkpoint(row)
    e = engine(path)
    info = e.model_info()
    assert info["max_model_len"] == info["max_position_embeddings"] == TOP
    assert any(has_words(text, REASON) for text in info["warnings"])
    assert any(has_words(text, REASON) for text in _C.inspect(path)["warnings"])
    assert _C.inspect(path)["keys_not_understood"] == []
    assert e.forward([3] * TOP).shape[0] == TOP
    assert len(greedy(e, [[3] * (TOP - 1)], 20)[0]) == 1
    for ask in (lambda: e.forward([3] * (TOP + 1)), lambda: greedy(e, [[3] * TOP], 1)):
        with pytest.raises(ValidationError) as caught:
            ask()
        assert has_words(str(caught.value), REASON)


def test_longer_max_model_len_is_refused(checkpoint):
    path = checkpoint(ROWS[0])
    with pytest.raises(ValidationError) as caught:
        engine(path, max_model_len=TOP + 1)
    assert caught.value.field == "max_model_len" and has_words(str(caught.value), REASON)
    shorter = engine(path, max_model_len=50)
    with pytest.raises(ValidationError) as caught:
        greedy(shorter, [[3] * 50], 1)
    assert "sparse" not in str(caught.value)  # the limit is the caller's


def test_index_topk_beyond_the_context_cuts_nothing(checkpoint):
    info = engine(checkpoint(family_models_latent.DEEPSEEK_V32[0])).model_info()
    assert info["max_position_embeddings"] == 128 and info["warnings"] == []


@pytest.mark.parametrize("keys, words", [
    ({"layer_types": ["full_attention", "full_attention"]}, ["layer_types", "full_attention", "indexed_attention"]),
    ({"rope_interleave": False}, ["rope_interleave", "false"]),
], ids=str)  # fmt: skip
def test_unsupported(tmp_path, keys, words):
    row: Row = replace(family_models_latent.DEEPSEEK_V32[0], edit=lambda c: c.update(keys))
    with pytest.raises(UnsupportedModelError) as caught:
        _C.inspect(write(row, tmp_path))
    assert has_words(str(caught.value), words)
