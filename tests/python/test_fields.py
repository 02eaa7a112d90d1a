"""Every field of the C++ structs, listed in csrc/engine/public_fields.h, is known to every part of the Python layer."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from lynx_rt import _C, Engine, SamplingParams, shipped_model
from lynx_rt.engine.options import _NOT_NATIVE
from lynx_rt.engine.outputs import LayerStats, layer_mean

HEADER = (Path(__file__).parents[2] / "csrc" / "engine" / "public_fields.h").read_text()
# Fields of SamplingParams in Python: value other than the default -> the name of the native field that then differs.
SAMPLING: dict[str, tuple[Any, str]] = {
    "temperature": (0.5, "temperature"),
    "top_p": (0.5, "top_p"),
    "top_k": (3, "top_k"),
    "min_p": (0.5, "min_p"),
    "presence_penalty": (0.5, "presence_penalty"),
    "frequency_penalty": (0.5, "frequency_penalty"),
    "repetition_penalty": (1.5, "repetition_penalty"),
    "seed": (3, "seed"),
    "max_tokens": (3, "max_tokens"),
    "min_tokens": (3, "min_tokens"),
    "stop_token_ids": ([3], "stop_token_ids"),
    "ignore_eos": (True, "ignore_eos"),
    "logprobs": (3, "logprobs"),
    "prompt_logprobs": (3, "prompt_logprobs"),
    "logit_bias": ({3: 1.0}, "logit_bias"),
    "allowed_token_ids": ([3], "allowed_token_ids"),
    "bad_words_ids": ([[3]], "bad_words"),
    "forced_token_ids": ([3], "forced_token_ids"),
    "expert_selection": ("exact", "exact"),
    "priority": (3, "priority"),
    "timeout": (3.5, "timeout"),
    "cache_salt": ("salt", "cache_salt"),
    "isolation_group": ("group", "isolation_group"),
    "report_progress": (True, "report_progress"),
}
# bad_words become bad_words_ids with a tokenizer.
PYTHON_ONLY = {
    *(
        "n",
        "stop",
        "bad_words",
        "detokenize",
        "skip_special_tokens",
        "include_stop_str_in_output",
        "structured_outputs",
    ),
    "thinking_token_budget",
}
NATIVE_ONLY_OPTIONS = {"disable_dependent_launch"}


def listed(*names: str) -> set[str]:
    """The fields in lists of public_fields.h."""
    found: set[str] = set()
    for name in names:
        [body] = re.findall(rf"#define LYNX_RT_{name}\(F\)((?:.*\\\n)*.*)", HEADER)
        found |= set(re.findall(r"F\((\w+)\)", body))
    return found


def test_engine_options() -> None:
    arguments = set(Engine.__init__.__annotations__) - {*_NOT_NATIVE, "return"}
    assert arguments | NATIVE_ONLY_OPTIONS == listed("OPTION_FIELDS", "OPTION_FIELDS_UNLIKE_C")


def test_engine_options_have_the_same_defaults() -> None:
    """Those that Python's signature gives; None stands for the native default."""
    header = (Path(__file__).parents[2] / "csrc" / "include" / "lynx_rt" / "engine.h").read_text()
    [body] = re.findall(r"struct EngineOptions \{(.*?)\n\};", header, re.DOTALL)
    native = dict(re.findall(r"^  [\w:]+ (\w+)(?: = ([^;]+))?;", body, re.MULTILINE))
    assert set(native) == listed("OPTION_FIELDS", "OPTION_FIELDS_UNLIKE_C")
    for name, value in Engine.__init__.__kwdefaults__.items():  # type: ignore[attr-defined]
        if name in native and value is not None:
            text = str(value).lower() if isinstance(value, bool) else str(value)
            assert native[name].strip('"') == text, name


def test_sampling_params() -> None:
    native = {name for name in vars(_C.SamplingParams) if not name.startswith("_")}
    assert native == listed("SAMPLING_FIELDS", "SAMPLING_ID_LISTS", "SAMPLING_FIELDS_UNLIKE_C")
    assert native == {name for _, name in SAMPLING.values()}
    assert {field.name for field in dataclasses.fields(SamplingParams)} == SAMPLING.keys() | PYTHON_ONLY


@pytest.mark.parametrize("field", SAMPLING)
def test_sampling_params_reach_the_engine(field: str) -> None:
    def native(params: SamplingParams) -> dict[str, Any]:
        made = params.to_native(index=0, vocab_size=100, max_model_len=50, eos_token_ids=(), tokenizer=None)
        return {name: getattr(made, name) for _, name in SAMPLING.values()}

    value, name = SAMPLING[field]
    default, changed = native(SamplingParams()), native(SamplingParams(**{field: value}))
    assert {key for key in default if default[key] != changed[key]} == {name}


def test_stats() -> None:
    """Engine.stats() raises TypeError where a dataclass lacks a field, or has one more."""
    with Engine(shipped_model(), expert_selection="slo:tpot_ms=20") as engine:
        engine.generate(["1 + 1 = ", "2 + 2 = "], {"max_tokens": 3, "temperature": 0}, use_tqdm=False)
        raw = engine._core.stats()
        stats = engine.stats()
        info = engine.model_config
    assert raw.keys() == listed("STATS_FIELDS", "STATS_PARTS")
    assert raw["layers"][0].keys() == listed("LAYER_STATS_FIELDS")
    assert raw["ops"][0].keys() == listed("OP_STATS_FIELDS")
    assert raw["slo"].keys() == listed("SLO_STATS_FIELDS", "SLO_STATS_PARTS")
    assert raw["tier"] is None
    assert dataclasses.asdict(stats) == raw
    assert info.keys() == listed("MODEL_SHAPE_FIELDS", "MODEL_SIZE_FIELDS", "MODEL_TEXT_FIELDS", "MODEL_OTHER_FIELDS")
    described = _C.inspect(shipped_model())
    assert {name: described[name] for name in listed("MODEL_SHAPE_FIELDS")} == {
        name: info[name] for name in listed("MODEL_SHAPE_FIELDS")
    }


def test_layer_mean() -> None:
    layers = [LayerStats(layer, 2, 6, 20, 10 + layer, 3, 1, 4.5) for layer in (0, 1)]
    assert layer_mean(layers, "active", "steps") == 21 / 4
    assert layer_mean(layers, "retained_mass", "rows") == 9 / 12
    assert layer_mean([], "active", "steps") == 0.0
