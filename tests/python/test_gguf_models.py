"""Models in GGUF through the Engine and the command line: lynx-nano as a file, against lynx-nano as a folder."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gguf import GGMLQuantizationType as Type
from test_gguf_tokenizer import exported

sys.path.insert(0, str(Path(__file__).parents[1] / "checkpoint"))
import gguf_files as gf

import lynx_rt
from lynx_rt import Engine, SamplingParams, ValidationError
from lynx_rt.cli.main import main
from lynx_rt.text.tokenizer import Tokenizer

PROMPTS = ["Q: 12 times 22 = ?\nA:", "Q: 345 + 678 = ?\nA:", "The capital of France"]
GREEDY = SamplingParams(temperature=0, max_tokens=24)


def metadata() -> dict[str, Any]:
    folder = Path(lynx_rt.shipped_model())
    config = json.loads((folder / "tokenizer_config.json").read_text())
    values = exported(
        json.loads((folder / "tokenizer.json").read_text()), "stablelm2"
    )  # Qwen's pattern, nothing normalised
    values |= {"bos_token_id": 1, "eos_token_id": 2, "padding_token_id": 0, "add_bos_token": True}
    return {f"tokenizer.ggml.{name}": value for name, value in values.items()} | {
        "tokenizer.chat_template": config["chat_template"],
        "general.sampling.temp": 0.25,
        "general.sampling.top_k": 7,
        "general.sampling.penalty_repeat": 1.5,
    }


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("gguf") / "nano.gguf"
    gf.convert(Path(lynx_rt.shipped_model()), file, Type.BF16, metadata=metadata())
    return file


@pytest.fixture(scope="module")
def engine(nano: Path) -> Iterator[Engine]:
    with Engine(nano) as engine:
        yield engine


@pytest.fixture(scope="module")
def reference() -> Iterator[Engine]:
    with Engine(lynx_rt.shipped_model()) as engine:
        yield engine


def test_text(engine: Engine, reference: Engine) -> None:
    ours, expected = engine.generate(PROMPTS, GREEDY), reference.generate(PROMPTS, GREEDY)
    assert [o.prompt_token_ids for o in ours] == [o.prompt_token_ids for o in expected]
    assert [o.text for o in ours] == [o.text for o in expected]
    assert [o.outputs[0].finish_reason for o in ours] == [o.outputs[0].finish_reason for o in expected]
    assert "stop" in [o.outputs[0].finish_reason for o in ours]  # the end of text is the file's


def test_chat(engine: Engine, reference: Engine) -> None:
    conversation = [{"role": "user", "content": "12 times 22 = ?"}]
    ours, expected = (e.chat(conversation, GREEDY)[0] for e in (engine, reference))
    assert ours.prompt_token_ids == expected.prompt_token_ids and ours.text == expected.text


def test_recommended_sampling(engine: Engine, nano: Path) -> None:
    params = engine.get_default_sampling_params()
    assert (params.temperature, params.top_k, params.repetition_penalty) == (0.25, 7, 1.5)
    with Engine(nano, generation_config=None) as plain:
        assert plain.get_default_sampling_params().top_k == SamplingParams().top_k


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_quantised_at_load(nano: Path, tmp_path: Path, quantization: str) -> None:
    texts = []
    for model in (nano, lynx_rt.shipped_model()):
        for _ in range(2):  # the second time from the cache
            with Engine(model, quantization=quantization, quantization_cache=tmp_path) as engine:
                texts.append([o.text for o in engine.generate(PROMPTS, GREEDY)])
    assert all(found == texts[0] for found in texts)


def test_folder(nano: Path, tmp_path: Path) -> None:
    shutil.copy(nano, tmp_path / "m.gguf")
    (tmp_path / "mmproj-m.gguf").write_bytes(b"")
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "of another model"}')
    with Engine(tmp_path) as engine:
        assert engine.generate(PROMPTS[0], GREEDY)[0].text
        assert Tokenizer(tmp_path / "m.gguf").chat_template == metadata()["tokenizer.chat_template"]
    with pytest.raises(ValidationError, match=r"load_format is 'safetensors', and .*m\.gguf is a GGUF file"):
        Engine(tmp_path, load_format="safetensors")


def test_command_line(nano: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(nano), "-p", PROMPTS[0], "--temperature", "0", "--max-tokens", "24"]) == 0
    ours = capsys.readouterr().out
    assert main(["generate", "-p", PROMPTS[0], "--temperature", "0", "--max-tokens", "24"]) == 0
    assert ours == capsys.readouterr().out
    assert main(["inspect", str(nano), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (
        facts["model_type"] == "qwen3_moe" and facts["tokenizer"] == "nano.gguf" and facts["keys_not_understood"] == []
    )


def test_another_name(nano: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.bin"
    file.write_bytes(b"GGUF" + bytes(99))
    with pytest.raises(ValidationError, match=r"whose name does not end in \.gguf: rename it"):
        Engine(file)
