"""Every MoE family with experts on the disk: the logits and tokens of all experts in memory."""

from __future__ import annotations

import family_models_gemma
import family_models_more
import family_models_plain
import family_models_special
import numpy as np
import pytest
from family_parity import engine, greedy, prompts_for, write

from lynx_rt import _C, UnsupportedModelError

ROWS = family_models_plain.ROWS + family_models_special.ROWS + family_models_gemma.ROWS + family_models_more.ROWS
FIRST = list({row.model_type: row for row in reversed(ROWS)}.values())


@pytest.mark.parametrize("row", FIRST, ids=lambda row: row.model_type)
def test_family(row, tmp_path):
    path, experts = write(row, tmp_path / "model"), str(tmp_path / "experts")
    plain = engine(path, enable_mixed_chunk=False, **row.options)
    if plain.model_info()["num_moe_layers"] == 0:
        with pytest.raises(UnsupportedModelError, match="no experts"):
            _C.pack_experts(path, experts)
        return
    _C.pack_experts(path, experts)
    tiered = engine(path, expert_file=experts, expert_memory="30%", **row.options)
    assert tiered.stats()["tier"]["slots"] > 0
    prompts = prompts_for(row)
    for prompt in prompts:
        assert np.array_equal(tiered.forward(prompt, 7), plain.forward(prompt, 7))
    assert greedy(tiered, prompts, 8) == greedy(plain, prompts, 8)
