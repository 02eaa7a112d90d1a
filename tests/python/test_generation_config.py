"""generation_config.json: default sampling, and the ends of text from every file that names any."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import transformers
from transformers import Llama4Config

from lynx_rt import CheckpointError, Engine, ModelNotFoundError, SamplingParams, Tokenizer, ValidationError
from lynx_rt.engine.generation_config import (
    GenerationConfig,
    GenerationConfigWarning,
    eos_token_ids,
    load_generation_config,
)


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
        (
            {"top_k": 50.0, "max_new_tokens": 2048.0, "min_new_tokens": 3.0},
            {"top_k": 50, "max_tokens": 2048, "min_tokens": 3},
        ),
        ({"do_sample": 1, "top_k": 5}, {"top_k": 5}),
        ({"do_sample": 0}, {"temperature": 0.0}),
        # Without effect on greedy decoding, so there is nothing to warn of.
        ({"do_sample": False, "top_p": 0, "temperature": 0.0, "top_k": "x", "min_p": 7}, {"temperature": 0.0}),
        ({"stop_strings": "a"}, {"stop": ["a"]}),
        ({"stop_strings": ["a", "b"], "suppress_tokens": []}, {"stop": ["a", "b"]}),
        ({"suppress_tokens": [5, 6.0]}, {"bad_words_ids": [[5], [6]]}),
        ({"bad_words_ids": [[7, 8], [9]], "suppress_tokens": 5}, {"bad_words_ids": [[7, 8], [9], [5]]}),
        # What transformers' own loop does, with the values with which it does nothing; and what it does not know.
        (
            {"num_beams": 1, "typical_p": 1.0, "no_repeat_ngram_size": 0, "guidance_scale": None, "sequence_bias": {}},
            {},
        ),
        ({"max_length": 20, "min_length": 0, "renormalize_logits": False, "n": 2, "seed": 3, "stop": "x"}, {}),
        ({"max_length": 4096, "max_new_tokens": 5}, {"max_tokens": 5}),
    ],
)
@pytest.mark.filterwarnings("error")
def test_defaults(tmp_path: Path, config: dict[str, Any], expected: dict[str, Any] | None) -> None:
    loaded = load_generation_config(write(tmp_path, generation_config=config))
    params = loaded.default_sampling_params(4096)
    assert params == SamplingParams(**(config if expected is None else expected))


def test_no_file_is_no_default(tmp_path: Path) -> None:
    assert load_generation_config(tmp_path).default_sampling_params() == SamplingParams()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("temperature", -1),
        ("temperature", "hot"),
        ("temperature", float("nan")),
        ("temperature", 1e300),
        ("top_k", 1.5),
        ("top_k", -2),
        ("top_p", 0),
        ("top_p", 1.5),
        ("min_p", 2),
        ("repetition_penalty", 0),
        ("repetition_penalty", [1.1]),
        ("max_new_tokens", 0),
        ("max_new_tokens", True),
        ("min_new_tokens", 1000),
        ("do_sample", "no"),
        ("do_sample", 2),
        ("stop_strings", [1]),
        ("suppress_tokens", [-1]),
        ("suppress_tokens", [4096]),
        ("suppress_tokens", {"a": 1}),
        ("bad_words_ids", [5]),
        ("bad_words_ids", [[1], "x"]),
        ("bad_words_ids", [[True]]),
        # Right, and not to be had here.
        ("no_repeat_ngram_size", 3),
        ("num_beams", 4),
        ("typical_p", 0.2),
        ("guidance_scale", 1.5),
        ("begin_suppress_tokens", [1]),
        ("forced_eos_token_id", 2),
        ("sequence_bias", [[[1], -1.0]]),
        ("max_length", 4096),
    ],
)
def test_a_value_without_use_is_warned_of_when_the_defaults_are_used(tmp_path: Path, key: str, value: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = load_generation_config(write(tmp_path, generation_config={"top_p": 0.7, "top_k": 9, key: value}))
    with pytest.warns(GenerationConfigWarning, match=rf"generation_config\.json: {key} is ignored: ") as caught:
        params = config.default_sampling_params(4096)
    assert len(caught) == 1
    others = {name: kept for name, kept in {"top_p": 0.7, "top_k": 9}.items() if name != key}
    assert params == SamplingParams(**others)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once is enough
        assert config.default_sampling_params(4096) == params


def test_stop_strings_without_a_tokenizer_are_warned_of(tmp_path: Path) -> None:
    config = load_generation_config(write(tmp_path, generation_config={"stop_strings": ["a"], "top_k": 3}))
    with pytest.warns(GenerationConfigWarning, match="stop_strings is ignored: .* tokenizer"):
        assert config.default_sampling_params(4096, with_text=False) == SamplingParams(top_k=3)


@pytest.mark.parametrize("text", ["[]", "{", "3"])
def test_a_file_that_is_no_object_is_warned_of(tmp_path: Path, text: str) -> None:
    write(tmp_path, generation_config=text, config={"eos_token_id": 3})
    with pytest.warns(GenerationConfigWarning, match=r"generation_config\.json"):
        config = load_generation_config(tmp_path)
    assert config.default_sampling_params() == SamplingParams() and config.eos_token_ids == [3]
    with pytest.raises(CheckpointError, match=r"generation_config\.json"):  # named by the caller, it must be right
        load_generation_config(tmp_path, tmp_path / "generation_config.json")


def test_where_the_defaults_come_from(tmp_path: Path) -> None:
    own, other = tmp_path / "own", tmp_path / "other"
    own.mkdir()
    other.mkdir()
    write(own, generation_config={"top_k": 3, "eos_token_id": 7}, config={"eos_token_id": 8})
    write(other, generation_config={"top_k": 5, "eos_token_id": 9})

    def read(source: Any) -> tuple[int, list[int]]:
        config = load_generation_config(own, source)
        return config.default_sampling_params().top_k, config.eos_token_ids

    assert read("auto") == (3, [7, 8])
    assert read("vllm") == read(None) == (0, [7, 8])  # ends of text are no sampling
    assert read(other) == read(str(other)) == read(other / "generation_config.json") == (5, [9, 8])
    with pytest.raises(ModelNotFoundError, match=r"generation_config: .* does not exist"):
        read(tmp_path / "none")
    with pytest.raises(ValidationError, match="generation_config must be 'auto', 'vllm', None or a path, got 5"):
        read(5)


@pytest.mark.parametrize("value", ["</s>", [1, "2"], True, 2.5, {"a": 1}])
def test_ends_of_text_that_are_no_tokens_are_warned_of(tmp_path: Path, value: Any) -> None:
    write(tmp_path, generation_config={"eos_token_id": value}, config={"eos_token_id": 3})
    with pytest.warns(GenerationConfigWarning, match=r"generation_config\.json: eos_token_id should be"):
        ids = load_generation_config(tmp_path).eos_token_ids
    assert ids == ([1, 3] if isinstance(value, list) else [3])


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
        ({"eos_token_id": 2.0}, {}, [2]),
    ],
)
def test_ends_of_text(tmp_path: Path, generation: Any, model: Any, expected: list[int]) -> None:
    files = {"config": model} | ({} if generation is None else {"generation_config": generation})
    assert load_generation_config(write(tmp_path, **files)).eos_token_ids == expected


def test_ends_of_text_of_a_nested_config_are_those_of_transformers(tmp_path: Path) -> None:
    config = Llama4Config(text_config={"eos_token_id": [7, 9], "num_hidden_layers": 1})
    config.save_pretrained(tmp_path)
    expected = transformers.GenerationConfig.from_model_config(config).eos_token_id
    assert load_generation_config(tmp_path).eos_token_ids == expected == [7, 9]


def test_which_ends_of_text_a_model_has(nano_path: str) -> None:
    tokenizer = Tokenizer(nano_path)
    assert eos_token_ids(GenerationConfig({}, Path(), [5, 4095, 4096, -1]), tokenizer, 4096) == {2, 5, 4095}
    assert eos_token_ids(GenerationConfig({}, Path()), None, 4096) == frozenset()


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
    write(tmp_path, generation_config={"top_p": 7, "top_k": 1.0, "stop_strings": "\n", "suppress_tokens": [free[0]]})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine = Engine(tmp_path)
        own = engine.generate(prompt, {"temperature": 0, "max_tokens": 1})[0].outputs[0].token_ids
        assert own == free[:1]
    with engine, pytest.warns(GenerationConfigWarning, match=r"generation_config\.json: top_p is ignored: .* 7"):
        assert engine.generate(prompt)[0].outputs[0].token_ids[0] != free[0]
    with Engine(tmp_path, generation_config="vllm") as engine:
        assert engine.get_default_sampling_params() == SamplingParams()
