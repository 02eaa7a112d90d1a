"""generation_config.json: default sampling, and the ends of text from every file that names some."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig, Llama4Config

from lynx_rt import CheckpointError, Engine, SamplingParams, Tokenizer
from lynx_rt.generation_config import default_sampling_params, eos_token_ids, load_generation_config


def write(folder: Path, **files: Any) -> Path:
    for name, value in files.items():
        (folder / f"{name}.json").write_text(value if isinstance(value, str) else json.dumps(value))
    return folder


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, {}),
        ({"temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.05, "repetition_penalty": 1.05}, None),
        ({"max_new_tokens": 7}, {"max_tokens": 7}),
        ({"do_sample": True, "temperature": 0.5}, {"temperature": 0.5}),
        ({"do_sample": False, "temperature": 0.5, "top_p": 0.9}, {"temperature": 0.0, "top_p": 0.9}),
        ({"do_sample": None, "temperature": None, "top_k": None}, {}),
        ({"do_sample": False}, {"temperature": 0.0}),
        ({"top_k": -1, "top_p": 1, "temperature": 0}, {"top_k": -1, "top_p": 1.0, "temperature": 0.0}),
        # Not taken, as in vLLM: lengths of prompt and output together, and what only transformers' own loop does.
        ({"max_length": 4, "min_new_tokens": 3, "num_beams": 4, "typical_p": 0.2, "n": 2, "seed": 3, "stop": "x"}, {}),
    ],
)
def test_defaults(tmp_path: Path, config: dict[str, Any], expected: dict[str, Any] | None) -> None:
    loaded = load_generation_config(write(tmp_path, generation_config=config))
    assert default_sampling_params(loaded) == SamplingParams(**(config if expected is None else expected))


def test_no_file_is_no_default(tmp_path: Path) -> None:
    assert default_sampling_params(load_generation_config(tmp_path)) == SamplingParams()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("temperature", -1),
        ("temperature", "hot"),
        ("temperature", float("nan")),
        ("top_k", 1.5),
        ("top_k", -2),
        ("top_p", 0),
        ("top_p", 1.5),
        ("min_p", 2),
        ("repetition_penalty", 0),
        ("repetition_penalty", [1.1]),
        ("max_new_tokens", 0),
        ("max_new_tokens", True),
        ("do_sample", "no"),
        ("do_sample", 0),
        ("eos_token_id", "</s>"),
        ("eos_token_id", [1, "2"]),
        ("eos_token_id", True),
        ("eos_token_id", 2.0),
        ("eos_token_id", {"a": 1}),
    ],
)
def test_bad_values_name_file_and_key(tmp_path: Path, key: str, value: Any) -> None:
    write(tmp_path, generation_config={"temperature": 0.7, key: value})
    with pytest.raises(CheckpointError, match=rf"generation_config\.json: {key}.*must be") as caught:
        load_generation_config(tmp_path)
    assert caught.value.field == key


@pytest.mark.parametrize("text", ["[]", "{", "3"])
def test_a_file_that_is_no_object(tmp_path: Path, text: str) -> None:
    with pytest.raises(CheckpointError, match=r"generation_config\.json"):
        load_generation_config(write(tmp_path, generation_config=text))


@pytest.mark.parametrize(
    ("generation", "model", "expected"),
    [
        (None, {}, []),
        (None, {"eos_token_id": 3}, [3]),
        (None, {"eos_token_id": None, "text_config": {"eos_token_id": [4, 5]}}, [4, 5]),
        ({"eos_token_id": [2, 3]}, {"eos_token_id": 3}, [2, 3]),
        ({"eos_token_id": 2}, {"eos_token_id": [3, 2], "text_config": {"eos_token_id": 6}}, [2, 3, 6]),
        ({"eos_token_id": []}, {"text_config": None}, []),
        ({}, {"text_config": "x"}, []),
    ],
)
def test_ends_of_text(tmp_path: Path, generation: Any, model: Any, expected: list[int]) -> None:
    files = {"config": model} | ({} if generation is None else {"generation_config": generation})
    assert load_generation_config(write(tmp_path, **files))["eos_token_id"] == expected


def test_ends_of_text_of_a_nested_config_are_those_of_transformers(tmp_path: Path) -> None:
    config = Llama4Config(text_config={"eos_token_id": [7, 9], "num_hidden_layers": 1})
    config.save_pretrained(tmp_path)
    expected = GenerationConfig.from_model_config(config).eos_token_id
    assert load_generation_config(tmp_path)["eos_token_id"] == expected == [7, 9]


def test_which_ends_of_text_a_model_has(nano_path: str) -> None:
    tokenizer = Tokenizer(nano_path)
    assert eos_token_ids({"eos_token_id": [5, 4095, 4096, -1]}, tokenizer, 4096) == {2, 5, 4095}
    assert eos_token_ids({"eos_token_id": []}, None, 4096) == frozenset()


def test_an_engine_reads_it(tmp_path: Path, nano_path: str) -> None:
    for file in Path(nano_path).iterdir():
        if file.name != "generation_config.json":
            (tmp_path / file.name).symlink_to(file)
    greedy = {"do_sample": False, "max_new_tokens": 5, "repetition_penalty": 1.1}
    write(tmp_path, generation_config=greedy)
    prompt = {"prompt_token_ids": [1, 50, 60]}
    with Engine(tmp_path) as engine:
        assert engine.get_default_sampling_params() == SamplingParams(
            temperature=0.0, max_tokens=5, repetition_penalty=1.1
        )
        free = engine.generate(prompt, {"temperature": 0, "ignore_eos": True, "max_tokens": 5})[0].outputs[0].token_ids
        assert len(engine.generate(prompt)[0].outputs[0].token_ids) <= 5
    write(tmp_path, generation_config=greedy | {"eos_token_id": [free[0]], "repetition_penalty": 1.0})
    with Engine(tmp_path) as engine:
        out = engine.generate(prompt)[0].outputs[0]
        assert (out.token_ids, out.finish_reason) == (free[:1], "stop")
    write(tmp_path, generation_config={"top_p": 7})
    with pytest.raises(CheckpointError, match=r"generation_config\.json: top_p: .* 7"):
        Engine(tmp_path)
