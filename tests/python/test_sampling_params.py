"""SamplingParams: defaults, validation as in vLLM, and the C++ form."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from lynx_rt import SamplingParams, Tokenizer, ValidationError

LIMITS = {"vocab_size": 4096, "max_model_len": 1024, "eos_token_ids": (), "tokenizer": None}


def test_defaults() -> None:
    params = SamplingParams()
    assert (params.n, params.temperature, params.top_p, params.top_k, params.max_tokens) == (1, 1.0, 1.0, 0, 256)
    assert params.stop == [] and params.seed is None and params.detokenize


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 0),
        ("n", 1.5),
        ("n", True),
        ("n", np.bool_(True)),
        ("n", 16385),
        pytest.param("n", 10**5000, id="n-huge"),
        ("presence_penalty", 2.1),
        ("frequency_penalty", -2.1),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", math.inf),
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", "1"),
        ("temperature", None),
        ("temperature", math.inf),
        ("temperature", 1e300),
        ("temperature", 10**400),
        ("temperature", 1j),
        ("presence_penalty", math.nan),
        ("frequency_penalty", -math.inf),
        ("repetition_penalty", 1e300),
        ("repetition_penalty", 1e-50),
        ("top_p", 1e-50),
        ("min_p", math.nan),
        ("top_k", math.inf),
        ("top_k", None),
        ("min_tokens", 2.5),
        ("max_tokens", 1e3),
        pytest.param("seed", 10**5000, id="seed-huge"),
        ("seed", math.nan),
        ("stop", ["\ud800"]),
        ("stop", b"x"),
        ("stop_token_ids", "12"),
        ("stop_token_ids", [[1]]),
        ("allowed_token_ids", {"1": 2}),
        ("bad_words_ids", 3),
        ("bad_words_ids", [1, 2]),
        ("bad_words_ids", [[1], []]),
        ("bad_words_ids", [["a"]]),
        ("logit_bias", {1: None}),
        ("logit_bias", {"9" * 5000: 1.0}),
        ("logprobs", True),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("top_p", math.nan),
        ("top_k", -2),
        ("top_k", 1.0),
        ("min_p", 1.1),
        ("seed", -2),
        ("seed", 2**64),
        ("stop", [""]),
        ("stop", [1]),
        ("stop", 3),
        ("stop_token_ids", [-1]),
        ("stop_token_ids", [2**31]),
        ("stop_token_ids", 3),
        ("max_tokens", 0),
        ("min_tokens", -1),
        ("min_tokens", 257),
        ("logprobs", -2),
        ("prompt_logprobs", "3"),
        ("logit_bias", {1: math.nan}),
        ("logit_bias", {-1: 1.0}),
        ("logit_bias", {"x": 1.0}),
        ("logit_bias", [1]),
        ("allowed_token_ids", []),
        ("forced_token_ids", []),
        ("forced_token_ids", [-1]),
        ("bad_words", [""]),
        ("expert_selection", "lynx"),
        ("ignore_eos", 1),
    ],
)
def test_a_bad_value_is_named(field: str, value: object) -> None:
    with pytest.raises(ValidationError) as caught:
        SamplingParams(**{field: value})
    assert caught.value.field == field
    assert field in str(caught.value)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("max_new_tokens", "max_tokens"), ("temprature", "temperature"), ("topk", "top_k"), ("num_return_sequences", "n")],
)
def test_an_unknown_field_gets_the_nearest_name(name: str, hint: str) -> None:
    with pytest.raises(ValidationError, match=f"did you mean {hint}\\?"):
        SamplingParams(**{name: 1})


def test_an_unknown_field_without_a_near_name_lists_all() -> None:
    with pytest.raises(ValidationError, match="fields: n, presence_penalty"):
        SamplingParams(zzz=1)


@pytest.mark.parametrize(
    ("name", "value", "hint"),
    [
        ("best_of", 2, "n completions"),
        ("logits_processors", [max], "logit_bias"),
        ("guided_decoding", object(), "structured_outputs"),
        ("guided_json", {"type": "object"}, "structured_outputs={'json': ...}"),
        ("guided_regex", "a+", "structured_outputs={'regex': ...}"),
        ("guided_choice", ["a", "b"], "structured_outputs={'choice': ...}"),
        ("guided_grammar", "start: x", "structured_outputs={'grammar': ...}"),
        ("response_format", {"type": "json_object"}, "structured_outputs"),
        ("lora_request", object(), "merge the adapter"),
        ("no_repeat_ngram_size", 3, "repetition_penalty"),
    ],
)
def test_a_field_of_other_engines_says_what_to_use(name: str, value: object, hint: str) -> None:
    with pytest.raises(ValidationError, match=f"{name} is not supported; .*{re.escape(hint)}") as caught:
        SamplingParams.of({name: value})
    assert caught.value.field == name and "fields:" not in str(caught.value)
    assert SamplingParams(**{name: None}) == SamplingParams()
    says_nothing = {"best_of": 1, "use_beam_search": False, "logits_processors": [], "no_repeat_ngram_size": 0}
    assert SamplingParams(**says_nothing) == SamplingParams()


def test_names_must_be_strings() -> None:
    with pytest.raises(ValidationError, match="names must be strings, got 5"):
        SamplingParams.of({5: 1})  # type: ignore[dict-item]


def test_combinations() -> None:
    with pytest.raises(ValidationError, match="temperature 0"):
        SamplingParams(n=2, temperature=0)
    with pytest.raises(ValidationError, match="detokenize"):
        SamplingParams(stop="x", detokenize=False)
    with pytest.raises(ValidationError, match="forced_token_ids"):
        SamplingParams(stop="x", forced_token_ids=[1])
    SamplingParams(max_tokens=None, min_tokens=10**6)


def test_plain_forms() -> None:
    params = SamplingParams(
        stop="x", seed=-1, temperature=np.float32(0.5), top_k=np.int64(3), logit_bias={"7": 1000, 8: -math.inf}
    )
    assert params.stop == ["x"] and params.seed is None and params.temperature == 0.5
    assert type(params.top_k) is int and params.logit_bias == {7: 100.0, 8: -100.0}
    assert SamplingParams.of({"top_k": 3}).top_k == 3
    assert params.clone(top_k=9).top_k == 9 and params.top_k == 3
    with pytest.raises(ValidationError, match="SamplingParams or a dict"):
        SamplingParams.of(3)  # type: ignore[arg-type]


def test_a_value_set_later_is_checked_when_used() -> None:
    params = SamplingParams()
    params.top_p = 2.0
    with pytest.raises(ValidationError, match="top_p"):
        params.to_native(index=0, **LIMITS)


def test_native_form() -> None:
    params = SamplingParams(
        max_tokens=None, seed=2**64 - 1, logprobs=-1, stop_token_ids=[5], logit_bias={3: 2.0}, expert_selection="exact"
    )
    native = params.to_native(index=1, **{**LIMITS, "eos_token_ids": (2, 5)})
    assert native.max_tokens == 1024 and native.seed == 0 and native.logprobs == 4096 and native.prompt_logprobs == -1
    assert list(native.stop_token_ids) == [5, 2] and list(native.logit_bias) == [(3, 2.0)] and native.exact
    assert not SamplingParams().to_native(index=0, **LIMITS).exact
    assert SamplingParams(forced_token_ids=np.array([7, 0])).to_native(index=0, **LIMITS).forced_token_ids == [7, 0]
    ignoring = params.clone(ignore_eos=True).to_native(index=0, **{**LIMITS, "eos_token_ids": (2,)})
    assert list(ignoring.stop_token_ids) == [5]


@pytest.mark.parametrize(
    "fields",
    [
        {"stop_token_ids": [4096]},
        {"allowed_token_ids": [9999]},
        {"forced_token_ids": [4096]},
        {"logit_bias": {4096: 1.0}},
        {"logprobs": 5000},
    ],
)
def test_the_vocabulary_is_a_limit(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="vocabulary") as caught:
        SamplingParams(**fields).to_native(index=0, **LIMITS)
    assert caught.value.field in fields


def test_bad_words_become_sequences(nano_path: str) -> None:
    tokenizer = Tokenizer(nano_path)
    native = SamplingParams(bad_words=["What", "What"]).to_native(index=0, **{**LIMITS, "tokenizer": tokenizer})
    expected = [tokenizer.encode(text, add_special_tokens=False) for text in ("What", " What")]
    assert [list(ids) for ids in native.bad_words] == expected
    both = SamplingParams(bad_words=["What"], bad_words_ids=[[7], (8, 9)])
    native = both.to_native(index=0, **{**LIMITS, "tokenizer": tokenizer})
    assert [list(ids) for ids in native.bad_words] == [*expected, [7], [8, 9]]
    with pytest.raises(ValidationError, match="bad_words_ids: token 4096"):
        SamplingParams(bad_words_ids=[[1, 4096]]).to_native(index=0, **LIMITS)
    with pytest.raises(ValidationError, match="tokenizer"):
        SamplingParams(bad_words=["x"]).to_native(index=0, **LIMITS)
