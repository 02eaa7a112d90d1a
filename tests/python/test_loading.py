"""Loading of weights: load_format, and the progress of copying them to a device."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import lynx_rt
from lynx_rt import Engine, LynxError, ModelNotFoundError, SamplingParams, ValidationError
from lynx_rt.engine.progress import LoadProgress

GREEDY = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)


@pytest.fixture
def config_only(tmp_path: Path) -> Path:
    """A model folder without weights."""
    shutil.copy(Path(lynx_rt.shipped_model()) / "config.json", tmp_path)
    return tmp_path


def test_dummy_weights_need_a_config_only(config_only: Path) -> None:
    with pytest.raises(ModelNotFoundError):
        Engine(config_only, skip_tokenizer_init=True)
    with (
        Engine(lynx_rt.shipped_model()) as real,
        Engine(config_only, skip_tokenizer_init=True, load_format="dummy") as made,
    ):
        assert made._info["weight_bytes"] == real._info["weight_bytes"]
        prompts = [{"prompt_token_ids": list(range(5, 5 + n))} for n in (1, 7, 20)]
        first = [out.outputs[0].token_ids for out in made.generate(prompts, GREEDY)]
        assert [len(ids) for ids in first] == [3, 3, 3]
    with Engine(config_only, skip_tokenizer_init=True, load_format="dummy") as again:
        assert [out.outputs[0].token_ids for out in again.generate(prompts, GREEDY)] == first


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_dummy_weights_of_every_dtype(config_only: Path, dtype: str) -> None:
    text = (config_only / "config.json").read_text().replace('"bfloat16"', f'"{dtype}"')
    (config_only / "config.json").write_text(text)
    with Engine(config_only, skip_tokenizer_init=True, load_format="dummy") as engine:
        (logits,) = engine._core.forward([3])
        assert abs(logits).max() < 100 and logits.std() > 0


QUANTIZED = {
    "awq": (
        {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"},
        4 + (16 + 8) / 32,
    ),
    "int8": (
        {
            "quant_method": "compressed-tensors",
            "format": "int-quantized",
            "ignore": ["lm_head", "re:.*self_attn.*"],
            "config_groups": {
                "group_0": {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "int", "strategy": "channel"}}
            },
        },
        8.0,
    ),
    "fp8": ({"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}, 8.0),
}


@pytest.mark.parametrize("name", QUANTIZED)
def test_dummy_weights_of_a_quantized_config(config_only: Path, name: str) -> None:
    """They have the bits of the file's form, so that a config is enough to measure the speed of a quantised model."""
    quantization, bits = QUANTIZED[name]
    config = json.loads((config_only / "config.json").read_text()) | {"quantization_config": quantization}
    (config_only / "config.json").write_text(json.dumps(config))
    experts = 8 * 32 * 3 * 256 * 96
    others = 8 * (256 * 4 * 64 * 2 + 256 * 2 * 64 * 2) if name in ("awq", "fp8") else 0  # attention
    sizes = {}
    for option in ("none", "dequantize"):
        with Engine(config_only, skip_tokenizer_init=True, load_format="dummy", quantization=option) as engine:
            sizes[option] = engine._info["weight_bytes"]
            (logits,) = engine._core.forward([3])
            assert abs(logits).max() < 100 and logits.std() > 0
    saved = sizes["dequantize"] - sizes["none"]
    scales = {"awq": 0, "fp8": 8 * (32 * (2 * 2 + 2) + 4 + 2 * 2 + 4)}  # others: one for each output
    assert saved == (experts + others) * (16 - bits) / 8 - scales.get(name, 8 * 32 * (2 * 96 + 256)) * 2


def test_an_unknown_load_format() -> None:
    with pytest.raises(ValidationError, match=r'load_format: expected "auto", "safetensors" or "dummy", got "gguf"'):
        Engine(lynx_rt.shipped_model(), load_format="gguf")


@pytest.mark.parametrize("length", [1025, 10**12])
def test_a_context_longer_than_the_models_is_named_before_memory_is_taken(length: int) -> None:
    with pytest.raises(
        ValidationError, match="max_model_len: expected at most the model's max_position_embeddings = 1024"
    ):
        Engine(lynx_rt.shipped_model(), max_model_len=length)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", None),
        ("tokenizer.json", "{}"),
        ("tokenizer_config.json", "["),
        ("chat_template.jinja", b"\xff"),
    ],
)
def test_small_files_are_checked_before_weights_are_read(
    tmp_path: Path, name: str, content: str | bytes | None
) -> None:
    """No quantised weights are left behind."""
    folder, cache = tmp_path / "model", tmp_path / "cache"
    shutil.copytree(lynx_rt.shipped_model(), folder)
    (folder / name).unlink(missing_ok=True)
    if content is not None:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(LynxError, match=f"{tmp_path}.*tokenizer" if content is None else name):
        Engine(folder, quantization="int4", quantization_cache=cache)
    assert not cache.exists()


@pytest.mark.parametrize(
    ("template", "message"),
    [("no/such.jinja", "cannot be read"), ("{% if %}", "does not compile"), (Path("x"), "read")],
)
def test_a_chat_template_is_checked_before_weights_are_read(tmp_path: Path, template: str | Path, message: str) -> None:
    cache = tmp_path / "cache"
    with pytest.raises(ValidationError, match=message) as caught:
        Engine(lynx_rt.shipped_model(), chat_template=template, quantization="int4", quantization_cache=cache)
    assert caught.value.field == "chat_template" and not cache.exists()


def test_progress_is_silent_without_a_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    progress = LoadProgress()
    progress(1, 2)
    progress(2, 2)
    assert capfd.readouterr() == ("", "")


def test_progress_ends_at_the_total(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    progress = LoadProgress()
    progress(400, 1000)
    progress(1000, 1000)
    assert "100%" in capfd.readouterr().err
