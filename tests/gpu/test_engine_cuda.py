"""The Python module and its Engine on this machine's GPU: long contexts, answers alone and together, quantised checkpoints. Skipped
where lynx_rt was built without CUDA or there is no GPU. Not yet run on one.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

import lynx_rt
from lynx_rt import _C

GPU = str(_C.build_info()["cuda"]).startswith("cuda:")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not GPU, reason=f"CUDA: {_C.build_info()['cuda']}")]
DEVICE = "cuda"


def logits(model: str | Path, tokens: list[int], **options: object) -> np.ndarray:
    """[T, vocabulary]"""
    return np.asarray(_C.Engine(str(model), max_num_seqs=2, **options).forward(tokens), np.float64)


def median_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Of the rows' root mean square differences, as tests/simt/test_engine.cc has it."""
    assert np.isfinite(found).all()
    return float(np.median(np.sqrt(((found - expected) ** 2).mean(-1))))


@pytest.mark.parametrize("length", [129, 500, 1000])
def test_logits_of_long_prompts(length: int) -> None:
    """As far from float32 as the CPU in bfloat16 is; a run on a GPU sums in another order."""
    model = lynx_rt.shipped_model()
    tokens = [int(t) for t in np.random.default_rng(length).integers(5, 200, length)]
    exact = logits(model, tokens, device="cpu", dtype="float32")
    ours = median_error(logits(model, tokens, device=DEVICE, dtype="bfloat16"), exact)
    cpu = median_error(logits(model, tokens, device="cpu", dtype="bfloat16"), exact)
    assert ours <= 1.25 * cpu, (ours, cpu)


def test_answers_do_not_depend_on_company() -> None:
    prompts = [f"Q: {a} times {b} = ?\nA:" for a in (3, 12, 45) for b in (7, 22)] + ["Once upon a time " * 60]
    with lynx_rt.Engine(lynx_rt.shipped_model(), device=DEVICE, dtype="bfloat16", expert_selection="topk") as engine:
        assert engine.device.startswith("cuda")
        params = lynx_rt.SamplingParams(temperature=0, max_tokens=24)
        together = engine.generate(prompts, params, use_tqdm=False)
        alone = [engine.generate(prompt, params, use_tqdm=False)[0] for prompt in prompts]
    assert [o.outputs[0].token_ids for o in together] == [o.outputs[0].token_ids for o in alone]


@pytest.mark.parametrize("name", ["fp8_block", "ct_int4_group", "mxfp4", "awq"])
def test_quantised_checkpoint(name: str, tmp_path: Path) -> None:
    """The same bits as the checkpoint of the values that it decodes to."""
    pytest.importorskip("torch")
    pytest.importorskip("safetensors")
    tests = Path(__file__).parents[1]
    sys.path[:0] = [str(tests / "checkpoint"), str(tests / "model")]
    import quantized_formats
    import test_quantized_formats as tq
    import tiny_models
    from safetensors.torch import load_file

    form = next(f for f in quantized_formats.FORMATS if f.name.startswith(name))
    folder = Path(tiny_models.write(tq.MODEL["bfloat16"], tmp_path / "tiny"))
    tensors, config = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())
    codes, values = tq.quantized(form, tensors, config)
    quantised = tq.write(tmp_path / "codes", codes, config | {"quantization_config": form.config})
    found, expected = (
        logits(path, tq.TOKENS, device=DEVICE, dtype="bfloat16")
        for path in (quantised, tq.write(tmp_path / "values", values, config))
    )
    assert np.isfinite(expected).all()
    np.testing.assert_array_equal(found, expected)
