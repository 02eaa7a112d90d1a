"""Every MoE family with experts on the disk: the logits and tokens of all experts in memory."""

from __future__ import annotations

import family_models_gemma
import family_models_more
import family_models_plain
import family_models_special
import family_models_states
import numpy as np
import pytest
from family_parity import engine, greedy, prompts_for, write

from lynx_rt import _C, UnsupportedModelError

ROWS = (
    family_models_plain.ROWS
    + family_models_special.ROWS
    + family_models_gemma.ROWS
    + family_models_more.ROWS
    + family_models_states.ROWS
)
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


@pytest.mark.parametrize("row", FIRST, ids=lambda row: row.model_type)
@pytest.mark.parametrize("quantization", ["none", "int4"])
def test_memory_is_divided_as_foretold(row, quantization, tmp_path):
    path, experts = write(row, tmp_path / "model"), str(tmp_path / "experts")
    sizes = {"max_num_seqs": 4, "max_model_len": 32}
    more: dict[str, object] = {"quantization": quantization, **row.options}

    def foretold(memory):
        found = _C.foretell_memory(path, memory, *sizes.values())
        return next(option for option in found if option["quantization"] == quantization)

    least = int(foretold(1)["error"].split("pass memory=")[1].split(" ")[0])
    if foretold(least)["num_experts"] > 0:
        _C.pack_experts(path, experts, quantization)
        more["expert_file"] = experts
    for memory in (least, least + foretold(10**9)["experts"] // 2, 10**9):
        said, made = foretold(memory), engine(path, memory=str(memory), **sizes, **more)
        info, tier = made.model_info(), made.stats()["tier"]
        assert (info["kv_bytes"], info["max_model_len"]) == (said["kv"], said["max_model_len"])
        assert (tier["slots"] if tier else said["num_experts"]) == said["slots"]
        assert (tier is None) == (memory == 10**9 or said["num_experts"] == 0)
        assert info["workspace_bytes"] <= said["steps"]
