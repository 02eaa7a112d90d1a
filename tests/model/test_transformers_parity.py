"""Logits and greedy tokens against transformers, eager attention, in float32 and in the 16-bit dtypes.

float32. Both sides compute the same sums in other orders, so the difference is rounding alone: at most 1e-4 of the row's largest
logit (measured: 5e-6). Greedy tokens are compared where the reference's margin exceeds what two such rows can differ by.

16 bit. The reference is the float32 run on the same weights, and the bound is the error of transformers' own 16-bit run, measured
in the same test. lynx_rt rounds activations where they enter a product and in the KV cache; transformers rounds there and also
after every norm, product, rotation and residual addition. Fewer roundings of the same size, hence:
  - the typical row (median over rows, of its rms and of its largest error) is no further away than transformers' row: factor 1;
  - over all logits, errors are heavy-tailed where rows are routed: a score that is almost tied flips to another expert, which moves
    the row by an amount that depends on the model and not on who rounded. Which rows flip is chance on both sides, so the
    extremes are two draws of one distribution. FLIP_FACTOR allows for that; without routing it is 1.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_models as tm
from family_parity import check_float32, engine, greedy, margins
from isas import ISAS

FLIP_FACTOR = 2.0
TASKS = Path(__file__).parents[2] / "bench" / "tasks"


def prompts_for(t, count=3):
    rng = np.random.default_rng(len(t.name))
    return [rng.integers(0, t.vocab, n).tolist() for n in (1, 17, 40)[:count]]


def errors(logits, ref):
    """(rms, max abs) over all logits, and the medians over rows of the rows' own."""
    d = logits - ref
    per_row = np.sqrt((d**2).mean(1)), np.abs(d).max(1)
    return np.array([np.sqrt((d**2).mean()), np.abs(d).max(), np.median(per_row[0]), np.median(per_row[1])])


def check_16bit(e, model32, model16, prompts, routed):
    ours, theirs, exact = [], [], []
    for prompt, generated in zip(prompts, greedy(e, prompts)):
        ids = prompt + [t for t, _ in generated]
        ours.append(e.forward(ids))
        theirs.append(tm.reference_logits(model16, ids))
        exact.append(tm.reference_logits(model32, ids))
        rows = np.arange(len(prompt) - 1, len(ids) - 1)
        assert (ours[-1][rows].argmax(1) == ids[len(prompt) :]).all(), "forward() and step() disagree"
    ours, theirs, exact = (np.concatenate(x) for x in (ours, theirs, exact))
    got, bound = errors(ours, exact), errors(theirs, exact)
    factor = np.array([FLIP_FACTOR, FLIP_FACTOR, 1, 1]) if routed else np.ones(4)
    report = f"rms, max, median rms, median max: {got} against transformers' {bound}"
    print(report)
    assert (got <= factor * bound).all(), report

    # Greedy: no choice differs from float32's where float32 leads by more than twice the error that was granted...
    sure = margins(exact) > 2 * factor[1] * bound[1]
    agrees = ours.argmax(1) == exact.argmax(1)
    assert agrees[sure].all()
    # ... and over all rows, near-ties included, no fewer agree than transformers' do, up to three standard deviations of that count.
    missed, allowed = (~agrees).sum(), (theirs.argmax(1) != exact.argmax(1)).sum()
    print(
        f"rows that chose another token than float32: {missed}, transformers {allowed}, of {len(agrees)}; {sure.sum()} sure"
    )
    assert missed <= allowed + 3 * np.sqrt(allowed + 1)


@pytest.mark.parametrize("name", tm.ALL)
def test_float32(name, tiny_path, reference_of):
    path = tiny_path(name)
    decided, steps, _ = check_float32(
        engine(path, dtype="float32"), reference_of(path, "float32"), prompts_for(tm.ALL[name])
    )
    assert steps == 3 * 64 and decided > 0.95 * steps


@pytest.mark.parametrize("name", [n for n, t in tm.ALL.items() if t.dtype != "float32"])
def test_16_bit(name, tiny_path, reference_of):
    path, t = tiny_path(name), tm.ALL[name]
    e = engine(path)
    assert e.model_info()["dtype"] == t.dtype, "dtype=auto is the checkpoint's"
    check_16bit(
        e, reference_of(path, "float32"), reference_of(path, t.dtype), prompts_for(t), routed=t.experts is not None
    )


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    "name, dtype", [("groups3", "float32"), ("bf16", "float32"), ("bf16_fused", "bfloat16"), ("f16", "float16")]
)
def test_every_isa(isa, name, dtype, tiny_path, reference_of):
    path, t = tiny_path(name), tm.ALL[name]
    e = engine(path, dtype=dtype, isa=isa, num_threads=2)
    assert f"cpu {isa}," in e.model_info()["device"]
    if dtype == "float32":
        check_float32(e, reference_of(path, dtype), prompts_for(t, 2))
    else:
        check_16bit(e, reference_of(path, "float32"), reference_of(path, dtype), prompts_for(t, 2), routed=True)


@pytest.fixture(scope="module")
def task_prompts(nano_path):
    """Ten prompts of the evaluation tasks, each of another task."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(nano_path) / "tokenizer.json"))
    lines = [path.read_text().splitlines()[i] for i, path in enumerate(sorted(TASKS.glob("*.jsonl"))[:10])]
    return [tokenizer.encode(json.loads(line)["prompt"]).ids for line in lines]


def test_nano_float32(nano_path, reference_of, task_prompts):
    e = engine(nano_path, dtype="float32", num_threads=2)
    decided, steps, _ = check_float32(e, reference_of(nano_path, "float32"), task_prompts)
    assert steps == 640 and decided > 0.95 * steps


def test_nano_bfloat16(nano_path, reference_of, task_prompts):
    e = engine(nano_path, dtype="bfloat16", num_threads=2)
    check_16bit(e, reference_of(nano_path, "float32"), reference_of(nano_path, "bfloat16"), task_prompts, routed=True)


def test_layouts_and_keys_on_disk(tiny_path):
    """What the checkpoints above are meant to cover is what lies on disk."""
    from safetensors import safe_open

    for name, t in tm.ALL.items():
        folder = Path(tiny_path(name))
        config = json.loads((folder / "config.json").read_text())
        names = [k for f in folder.glob("*.safetensors") for k in safe_open(f, "np").keys()]  # noqa: SIM118
        assert (len(list(folder.glob("*.safetensors"))) > 1) == t.sharded
        assert ("lm_head.weight" in names) != t.tied
        assert ("torch_dtype" in config) == t.legacy_keys and ("rope_theta" in config) == t.legacy_keys
        if t.experts is not None:
            assert ("num_experts" in config) == t.legacy_keys and ("num_local_experts" in config) != t.legacy_keys
            assert any(k.endswith("mlp.experts.gate_up_proj") for k in names) == t.fused
            assert any(k.endswith("mlp.experts.0.gate_proj.weight") for k in names) != t.fused
