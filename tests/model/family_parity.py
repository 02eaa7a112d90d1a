"""Checks that every family must pass on tiny random checkpoints that transformers writes. family_models_*.py has a row per
checkpoint, test_families.py the tests."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models as tm
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from lynx_rt import _C

F32_BOUND = 1e-4  # of the row's largest absolute logit
SIZES = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 40,
         "vocab_size": 97, "max_position_embeddings": 128, "bos_token_id": None, "eos_token_id": 2, "pad_token_id": None}  # fmt: skip
LEGACY = {"num_local_experts": "num_experts"}  # of families whose hub configs say num_experts


@dataclass(frozen=True)
class Row:
    """One checkpoint: its transformers config, and its form on disk."""

    model_type: str
    name: str
    keys: dict[str, Any] = field(default_factory=dict)  # keys of the config, on top of SIZES
    dtype: str = "float32"  # dtype of the weights
    fused: bool = False  # save_original_format=False: the layout that transformers 5 holds in memory
    sharded: bool = False
    # Edits config.json before either side reads it. legacy_keys() is the usual one.
    edit: Callable[[dict[str, Any]], None] | None = None
    # Edits the tensors {name: tensor} of the checkpoint to the form of files from elsewhere.
    edit_tensors: Callable[[dict[str, torch.Tensor]], None] | None = None
    # Corrects what transformers computes otherwise than the model's authors; each use says what.
    edit_reference: Callable[[torch.nn.Module], None] | None = None
    # The config of the vision tower beside the text model, whose config then is an inner one.
    vision: dict[str, Any] | None = None
    options: dict[str, Any] = field(default_factory=dict)  # options of the engine
    prompts: tuple[int, ...] = (1, 13, 30)  # lengths of prompts
    spread: float = 0.3  # standard deviation of the weights: large, so that logits have real margins
    seed: int = 0

    @property
    def id(self) -> str:
        return f"{self.model_type}-{self.name}"


def legacy_keys(config: dict[str, Any], renamed: dict[str, str] = LEGACY) -> None:
    """Changes to the keys of transformers 4: rope_theta and rope_scaling, torch_dtype, and those in `renamed`."""
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = rope if rope["rope_type"] != "default" else None
    config["torch_dtype"] = config.pop("dtype")
    for key in renamed.keys() & config.keys():
        config[renamed[key]] = config.pop(key)


def legacy_rope(config: dict[str, Any], renamed: dict[str, str] = LEGACY) -> None:
    """legacy_keys() with the type of a scaled rope under its older name."""
    legacy_keys(config, renamed)
    config["rope_scaling"]["type"] = config["rope_scaling"].pop("rope_type")


def _fill(model: torch.nn.Module, row: Row) -> None:
    """Fills every parameter and saved buffer at random, also those that start at 1 or 0 and would hide a mistake."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{row.id}{row.seed}".encode()))
    for name, p in model.state_dict().items():
        noise = torch.randn(p.shape, generator=generator)
        factor = ("norm" in name or "scal" in name) and not name.endswith("bias")
        if name.endswith("A_log"):  # decays of states as trained models have them: a state lasts for some tokens
            p.data.copy_(noise - 2)
        else:
            p.data.copy_(1 + 0.2 * noise if factor else row.spread * noise)
        # Gemma 4 divides the router's logits by the root of H: its routers are to be as decided as others.
        if name.endswith("router.proj.weight"):
            p.data.mul_(p.shape[1] ** 0.5)


def write(row: Row, folder: Path) -> str:
    """Writes the checkpoint and returns its folder."""
    keys = SIZES | row.keys
    if row.vision:
        config = AutoConfig.for_model(row.model_type, text_config=keys, vision_config=row.vision)
        model = AutoModelForImageTextToText.from_config(config).eval()
    else:
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(row.model_type, **keys)).eval()
    _fill(model, row)
    model.to(getattr(torch, row.dtype)).save_pretrained(
        folder, save_original_format=not row.fused, max_shard_size="30kB" if row.sharded else "1GB"
    )
    if row.edit:
        path = folder / "config.json"
        edited = json.loads(path.read_text())
        row.edit(edited)
        path.write_text(json.dumps(edited))
    if row.edit_tensors:
        from safetensors.torch import load_file, save_file

        tensors = load_file(folder / "model.safetensors")
        row.edit_tensors(tensors)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return str(folder)


def written_once(folders: pytest.TempPathFactory) -> Callable[[Row], str]:
    """Returns f(row) -> the folder of the row's checkpoint, which is written by the first call. For fixtures."""
    made: dict[str, str] = {}

    def get(row: Row) -> str:
        if row.id not in made:
            made[row.id] = write(row, folders.mktemp(row.id))
        return made[row.id]

    return get


def reference(row: Row, path: str) -> torch.nn.Module:
    """Loads the checkpoint in transformers, float32, eager attention: an exact conversion of a 16-bit checkpoint."""
    model = tm.reference(path, "float32", AutoModelForImageTextToText if row.vision else AutoModelForCausalLM)
    if row.edit_reference:
        row.edit_reference(model)
    return model


def engine(path: str, **options: Any) -> _C.Engine:
    return _C.Engine(path, **({"max_num_seqs": 16, "num_threads": 1} | options))


def prompts_for(row: Row) -> list[list[int]]:
    rng = np.random.default_rng(len(row.id))
    return [rng.integers(0, (SIZES | row.keys)["vocab_size"], n).tolist() for n in row.prompts]


def greedy(
    e: _C.Engine, prompts: list[list[int]], count: int = 64, exact: tuple[int, ...] = ()
) -> list[list[tuple[int, float]]]:
    """Generates `count` tokens for each prompt, as one batch: [(token, logprob), ...] per prompt."""
    ids = []
    for i, prompt in enumerate(prompts):
        params = _C.SamplingParams()
        params.temperature, params.max_tokens, params.ignore_eos, params.logprobs = 0.0, count, True, 0
        params.exact = i in exact
        ids.append(e.add_request(prompt, params))
    return finish(e, ids)


def finish(e: _C.Engine, ids: list[int]) -> list[list[tuple[int, float]]]:
    """Runs the engine until it has no requests; returns the tokens and log probabilities of those of `ids`."""
    out: dict[int, list[tuple[int, float]]] = {i: [] for i in ids}
    while e.has_unfinished():
        for o in e.step():
            assert not o.error, o.error
            if o.request_id in out:
                out[o.request_id] += [(t, lp[0][1]) for t, lp in zip(o.token_ids, o.logprobs)]
    return [out[i] for i in ids]


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def margins(ref):
    """Returns, for each row, the lead of the largest logit."""
    top = np.partition(ref, -2, axis=-1)
    return top[:, -1] - top[:, -2]


def check_float32(e, model, prompts, count=64):
    """Every logit of every position within the bound, tokens equal wherever the reference is decided, steps equal to one pass.
    -> decided, steps, and the tokens with their logprobs."""
    decided = steps = 0
    batch = greedy(e, prompts, count)
    for prompt, generated in zip(prompts, batch):
        tokens = [t for t, _ in generated]
        assert len(tokens) == count
        ids = prompt + tokens
        ref = tm.reference_logits(model, ids)
        bound = F32_BOUND * np.abs(ref).max(1)
        ours = e.forward(ids)
        diff = np.abs(ours - ref).max(1)
        worst = int(np.argmax(diff / bound))
        assert diff[worst] <= bound[worst], f"row {worst}: off by {diff[worst]:.3g}, bound {bound[worst]:.3g}"

        rows = slice(len(prompt) - 1, len(ids) - 1)  # the rows that chose the generated tokens
        chosen = np.arange(len(tokens)), tokens
        sure = margins(ref[rows]) > 2 * bound[rows]
        assert (ref[rows].argmax(1) == tokens)[sure].all()
        np.testing.assert_array_less((ref[rows].max(1) - ref[rows][chosen]) - 2 * bound[rows], 1e-30)
        logprobs = [lp for _, lp in generated]
        expected = log_softmax(ref[rows].astype(np.float64))[chosen]
        np.testing.assert_array_less(np.abs(logprobs - expected), 2 * bound[rows] + 1e-6)

        # Prefill and decode in steps are one pass, up to what a float32 logprob rounds.
        assert ours[rows].argmax(1).tolist() == tokens, "forward() and step() disagree"
        np.testing.assert_allclose(logprobs, log_softmax(ours[rows].astype(np.float64))[chosen], rtol=1e-6, atol=2e-6)
        decided, steps = decided + int(sure.sum()), steps + len(tokens)
    return decided, steps, batch


def check_batch_invariance(path, prompts, batch, **options):
    """Each request on its own, prefilled a few tokens at a time, by two threads, in small blocks: bitwise what the batch gave it."""
    e = engine(path, dtype="float32", max_num_batched_tokens=5, max_num_seqs=4, block_size=8, enable_prefix_caching=False,
               **options | {"num_threads": 2})  # fmt: skip
    for prompt, expected in zip(prompts, batch):
        assert greedy(e, [prompt], len(expected)) == [expected]


def check_selection(path, prompts, batch, **options):
    """In a batch that LYNX selects for: fewer experts than the requests' own (where they do not want all), in no layer and step none; a
    request that is exact gets bitwise the tokens and logprobs of topk."""
    e = engine(path, dtype="float32", expert_selection="lynx:alpha=2,theta=1.5", **options)
    assert greedy(e, prompts, len(batch[0]), exact=(1,))[1] == batch[1]
    info, layers = e.model_info(), e.stats()["layers"]
    assert len(layers) == info["num_moe_layers"]
    assert all(layer["steps"] <= layer["active"] <= layer["union_before"] for layer in layers)
    fewer = sum(layer["active"] for layer in layers) < sum(layer["union_before"] for layer in layers)
    assert fewer == (info["num_experts_per_tok"] < info["num_experts"])


def check_pages(path, prompts, batch, **options):
    """Preempted for want of pages, or with a prompt from the prefix cache: bitwise what the batch gave."""
    count, longest = len(batch[0]), max(len(p) for p in prompts) + len(batch[0])
    cached = engine(path, dtype="float32", block_size=8, **options)
    for _ in range(2):
        assert greedy(cached, prompts, count) == batch
    assert cached.stats()["cached_prompt_tokens"] > 0
    scarce = engine(path, dtype="float32", block_size=8, enable_prefix_caching=False,
                    kv_cache_memory_bytes=(longest + 16) * cached.model_info()["kv_bytes_per_token"],
                    **{"max_model_len": longest} | options)  # fmt: skip
    assert greedy(scarce, prompts, count) == batch
    assert scarce.stats()["preemptions"] > 0


def check_family(row: Row, path: str) -> None:
    model = reference(row, path)
    prompts = prompts_for(row)
    e = engine(path, dtype="float32", **row.options)
    # Angles of these ropes change with the length of a sequence, beyond which one pass is not what its steps were.
    by_length = row.keys.get("rope_parameters", {}).get("rope_type") in ("longrope", "dynamic")
    decided, steps, batch = check_float32(e, model, prompts, count=32 if by_length else 64)
    assert decided > 0.9 * steps, f"only {decided} of {steps} steps are decided: the row tests little"
    check_batch_invariance(path, prompts, batch, **row.options)
    if not _C.inspect(path)[
        "state_bytes_per_sequence"
    ]:  # those with states: tests/engine/test_hybrid_states.py, test_state_families.py
        check_pages(path, prompts, batch, **row.options)
    if e.model_info()["num_experts"] > 0:
        check_selection(path, prompts, batch, **row.options)
