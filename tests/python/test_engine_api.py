"""The Engine on the shipped model: prompt forms, sampling, stops, logprobs, streaming, errors, life cycle."""

from __future__ import annotations

import asyncio
import warnings
from pathlib import Path

import numpy as np
import pytest
import tokenizers

import lynx_rt
from lynx_rt import Engine, EngineClosedError, ModelNotFoundError, QueueFullError, SamplingParams, ValidationError

SUM = "Q: 12 times 22 = ?\nA:"
GREEDY = {"temperature": 0, "max_tokens": 16}
LONG = {"temperature": 0, "max_tokens": 40, "ignore_eos": True}


def test_it_answers(nano: Engine) -> None:
    (output,) = nano.generate(SUM)
    completion = output.outputs[0]
    assert str(output) == output.text == " 264" == completion.text
    assert completion.token_ids[-1] == 2 and completion.finish_reason == "stop" and completion.stop_reason is None
    assert output.finished and output.prompt == SUM and output.prompt_token_ids == nano.encode(SUM)


def test_chat(nano: Engine) -> None:
    messages = [{"role": "user", "content": "12 times 22 = ?"}]
    (one,) = nano.chat(messages)
    assert one.text == " 264" and one.prompt_token_ids == nano.encode(SUM)
    assert one.prompt == "<|bos|>" + SUM
    assert [out.text for out in nano.chat([messages, messages])] == [" 264", " 264"]
    (custom,) = nano.chat(messages, chat_template="{{ bos_token }}Q: {{ messages[0].content }}\nA:")
    assert custom.text == " 264"


def test_prompt_forms_give_the_same(nano: Engine) -> None:
    ids = nano.encode(SUM)
    forms = [SUM, {"prompt": SUM}, ids, {"prompt_token_ids": ids}, np.array(ids), tuple(ids)]
    for form in forms:
        assert [out.text for out in nano.generate(form, GREEDY)] == [" 264"]
    assert [out.text for out in nano.generate(forms, GREEDY)] == [" 264"] * len(forms)
    assert [out.text for out in nano.generate(np.array([ids, ids]), GREEDY)] == [" 264"] * 2
    assert nano.generate(iter([SUM]), GREEDY)[0].text == " 264"
    assert nano.generate([]) == []


def test_results_keep_the_order_of_prompts(nano: Engine) -> None:
    prompts = [f"Q: {n} + {n} = ?\nA:" for n in range(20, 30)]
    params = [SamplingParams(temperature=0, max_tokens=1 + n % 4) for n in range(10)]
    outputs = nano.generate(prompts, params)
    assert [out.prompt for out in outputs] == prompts
    assert [len(out.outputs[0].token_ids) for out in outputs] == [1 + n % 4 for n in range(10)]


@pytest.mark.parametrize(
    ("prompts", "text"),
    [
        ([[1], []], r"prompts\[1\] is empty"),
        (["a", "b", "c", [5] * 1024], r"prompts\[3\] has 1024 tokens"),
        ([[1, 4096]], r"prompts\[0\]: token 1 is 4096"),
        ([1, -1], "prompt: token 1 is -1"),
        ([1, "a"], "token 1 must be an integer"),
        ([True], "token 0 must be an integer"),
        ({"text": "a"}, r"the keys 'prompt', 'prompt_token_ids' or 'messages', got \['text'\]"),
        ({"prompt": "a", "temperature": 1}, r"the keys 'prompt', got \['prompt', 'temperature'\]"),
        ({"prompt": 3}, "'prompt' must be text"),
        ({"prompt_token_ids": "a"}, "must be token ids"),
        (["a", None], r"prompts\[1\] must be text or token ids"),
        (3, "prompts must be"),
        ("\ud800", "prompt: .*UTF-8"),
        (["a", "b\ud800"], r"prompts\[1\]: text cannot be encoded as UTF-8: .* at character 1"),
        ({"prompt": "a", "prompt_token_ids": "a"}, "must be token ids"),
        ({"prompt": 3, "prompt_token_ids": [5]}, "'prompt' must be text"),
        (
            {"prompt": "a", "multi_modal_data": {"image": 1}},
            "'multi_modal_data' is not supported: this engine reads text",
        ),
        ({"prompt": "a", "cache_salt": "s"}, "'cache_salt' is not supported: .*enable_prefix_caching=False"),
        ([{"role": "user"}, {"prompt": "a"}], r"messages\[1\] must be a dict with 'role'"),
        (["a", {"messages": [{"role": "user", "content": "\ud800"}]}], r"prompts\[1\]: .*UTF-8"),
        (["a", {"messages": []}], r"prompts\[1\]: messages must hold at least one"),
        (["a", [{"role": "user", "content": "x"}, {"content": "y"}]], r"prompts\[1\]: messages\[1\] must be a dict"),
        ({"messages": [{"role": "user", "content": "x"}], "prompt": "a"}, "the keys 'messages' and 'chat_template'"),
        ({"a", "b"}, "prompts must be text, token ids or a list of them"),
    ],
)
def test_a_bad_prompt_is_named_and_nothing_is_queued(nano: Engine, prompts: object, text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        nano.generate(prompts, GREEDY)
    stats = nano.stats()
    assert stats.num_running == 0 and stats.num_waiting == 0


def test_bad_params(nano: Engine) -> None:
    with pytest.raises(ValidationError, match="2 prompts but 1 sampling_params"):
        nano.generate(["a", "b"], [GREEDY])
    with pytest.raises(ValidationError, match="did you mean max_tokens"):
        nano.generate("a", {"max_new_tokens": 3})
    with pytest.raises(ValidationError, match="one prompt, got 2"):
        nano.stream(["a", "b"])


def test_defaults_come_from_the_generation_config(nano: Engine) -> None:
    params = nano.get_default_sampling_params()
    assert params.temperature == 0 and params.max_tokens == 64
    assert nano.generate(SUM, SamplingParams(max_tokens=None, temperature=0))[0].text == " 264"


def test_seeds(nano: Engine) -> None:
    params = SamplingParams(temperature=1.5, seed=7, max_tokens=12, ignore_eos=True)
    first, second = nano.generate(["The", "The"], params)
    assert first.outputs[0].token_ids == second.outputs[0].token_ids
    (other,) = nano.generate("The", params.clone(seed=8))
    assert other.outputs[0].token_ids != first.outputs[0].token_ids


def test_n_completions_use_consecutive_seeds(nano: Engine) -> None:
    params = SamplingParams(temperature=1.5, seed=7, max_tokens=12, ignore_eos=True)
    (fan,) = nano.generate("The", params.clone(n=3))
    assert [completion.index for completion in fan.outputs] == [0, 1, 2]
    singles = [nano.generate("The", params.clone(seed=7 + k))[0].outputs[0] for k in range(3)]
    assert [completion.token_ids for completion in fan.outputs] == [single.token_ids for single in singles]
    assert fan.metrics.num_generation_tokens == 36


def test_length_and_min_tokens(nano: Engine) -> None:
    (cut,) = nano.generate(SUM, {"temperature": 0, "max_tokens": 2})
    assert cut.outputs[0].finish_reason == "length" and cut.text == " 264"[: len(cut.text)]
    (longer,) = nano.generate(SUM, {"temperature": 0, "max_tokens": 12, "min_tokens": 10})
    assert len(longer.outputs[0].token_ids) >= 10
    (whole,) = nano.generate([5] * 1020, {"temperature": 0, "max_tokens": None, "ignore_eos": True})
    assert len(whole.outputs[0].token_ids) == 4 and whole.outputs[0].finish_reason == "length"


def test_stop_strings(nano: Engine) -> None:
    (output,) = nano.generate(SUM, GREEDY | {"stop": "64"})
    completion = output.outputs[0]
    assert completion.text == " 2" and completion.finish_reason == "stop" and completion.stop_reason == "64"
    (kept,) = nano.generate(SUM, GREEDY | {"stop": ["zz", "64"], "include_stop_str_in_output": True})
    assert kept.text == " 264"
    (later,) = nano.generate(SUM, GREEDY | {"stop": "264", "min_tokens": 5})
    assert later.text.startswith(" 264")


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("include", [True, False])
def test_a_stop_string_may_be_a_special_token(nano: Engine, skip: bool, include: bool) -> None:
    params = LONG | {
        "stop": ["zz", "<|eos|>"],
        "skip_special_tokens": skip,
        "include_stop_str_in_output": include,
    }
    (output,) = nano.generate(SUM, params)
    completion = output.outputs[0]
    assert (completion.finish_reason, completion.stop_reason) == ("stop", "<|eos|>")
    assert completion.token_ids[-1] == 2 and completion.token_ids.count(2) == 1
    assert completion.text == " 264" + "<|eos|>" * include
    assert "".join(step.outputs[0].delta_text for step in nano.stream(SUM, params)) == completion.text
    (own,) = nano.generate(SUM, params | {"ignore_eos": False})
    # The model's own end of text comes first, unless the string is in the text that is shown: as in vLLM.
    assert own.outputs[0].stop_reason == ("<|eos|>" if include and not skip else None)
    (later,) = nano.generate(SUM, params | {"min_tokens": 8})
    assert len(later.outputs[0].token_ids) > 8 and later.outputs[0].stop_reason == "<|eos|>"


def test_a_stop_string_around_a_special_token_is_warned_of(nano: Engine) -> None:
    params = LONG | {"stop": ["64<|eos|>"]}
    with pytest.warns(UserWarning, match=r"stop: '64<\|eos\|>' has a special token in it"):
        nano.generate(SUM, params)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (output,) = nano.generate(SUM, params | {"skip_special_tokens": False})
    assert output.text == " 2" and output.outputs[0].stop_reason == "64<|eos|>"


def test_stop_tokens(nano: Engine) -> None:
    free = nano.generate(SUM, GREEDY)[0].outputs[0].token_ids
    stop = free[-2]
    (output,) = nano.generate(SUM, GREEDY | {"stop_token_ids": [stop]})
    completion = output.outputs[0]
    assert completion.token_ids[-1] == stop and completion.stop_reason == stop and completion.finish_reason == "stop"
    assert completion.text == nano.decode(completion.token_ids[:-1])
    (kept,) = nano.generate(SUM, GREEDY | {"stop_token_ids": [stop], "include_stop_str_in_output": True})
    assert kept.text == nano.decode(kept.outputs[0].token_ids)
    (shown,) = nano.generate(SUM, GREEDY | {"skip_special_tokens": False, "include_stop_str_in_output": True})
    assert shown.text == " 264<|eos|>"


def test_detokenize_off(nano: Engine) -> None:
    (output,) = nano.generate(SUM, GREEDY | {"detokenize": False})
    assert output.text == "" and nano.decode(output.outputs[0].token_ids) == " 264"


def test_constraints(nano: Engine) -> None:
    free = nano.generate(SUM, GREEDY)[0].outputs[0].token_ids
    (biased,) = nano.generate(SUM, GREEDY | {"logit_bias": {free[0]: -100}})
    assert biased.outputs[0].token_ids[0] != free[0]
    (allowed,) = nano.generate(SUM, GREEDY | {"allowed_token_ids": [40, 50], "max_tokens": 5, "ignore_eos": True})
    assert set(allowed.outputs[0].token_ids) <= {40, 50}
    (without,) = nano.generate(SUM, GREEDY | {"bad_words": ["264", "6"]})
    assert "6" not in without.text


def test_logprobs(nano: Engine) -> None:
    (output,) = nano.generate(SUM, GREEDY | {"logprobs": 3, "prompt_logprobs": 0})
    completion = output.outputs[0]
    assert completion.logprobs is not None and len(completion.logprobs) == len(completion.token_ids)
    for token_id, entry in zip(completion.token_ids, completion.logprobs, strict=True):
        assert next(iter(entry)) == token_id and 3 <= len(entry) <= 4
        assert entry[token_id].rank == 1 and entry[token_id].decoded_token == nano.get_tokenizer().piece(token_id)
        assert all(other.logprob <= entry[token_id].logprob <= 0 for other in entry.values())
    spoken = zip(completion.token_ids[:-1], completion.logprobs[:-1], strict=True)
    assert b"".join(bytes(entry[token_id].bytes or []) for token_id, entry in spoken).decode() == output.text
    total = sum(entry[t].logprob for t, entry in zip(completion.token_ids, completion.logprobs, strict=True))
    assert completion.cumulative_logprob == pytest.approx(total, abs=1e-5)
    assert output.prompt_logprobs is not None and output.prompt_logprobs[0] is None
    assert len(output.prompt_logprobs) == len(output.prompt_token_ids)
    (plain,) = nano.generate(SUM, GREEDY)
    assert plain.outputs[0].logprobs is None and plain.outputs[0].cumulative_logprob is None


def test_score_is_the_sum_of_log_probabilities(nano: Engine) -> None:
    right, wrong = nano.score([SUM, SUM], [" 264", " 917"])
    assert right > wrong
    head, tail = nano.encode(SUM), nano.encode(" 264", add_special_tokens=False)
    logits = np.asarray(nano._core.forward(head + tail), dtype=np.float64)
    logprobs = logits - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
    logprobs -= logits.max(-1, keepdims=True)
    expected = sum(logprobs[len(head) - 1 + k, token_id] for k, token_id in enumerate(tail))
    assert right == pytest.approx(expected, abs=1e-3)
    with pytest.raises(ValidationError, match="1 prompts but 2 completions"):
        nano.score(["a"], ["b", "c"])
    with pytest.raises(ValidationError, match=r"completions\[0\] is empty"):
        nano.score(["a"], [""])


def test_stream_adds_up_to_generate(nano: Engine) -> None:
    params = SamplingParams(temperature=1.2, seed=3, max_tokens=60, ignore_eos=True)
    (whole,) = nano.generate("The", params)
    deltas, last = [], None
    for last in nano.stream("The", params):
        deltas.append(last.outputs[0].delta_text)
        assert last.text == "".join(deltas)
        assert not last.finished or last.outputs[0].finish_reason == "length"
    assert last is not None and last.finished and last.text == whole.text
    assert last.outputs[0].token_ids == whole.outputs[0].token_ids


def test_stream_of_several_completions(nano: Engine) -> None:
    params = SamplingParams(temperature=1.2, seed=3, max_tokens=8, ignore_eos=True, n=2)
    (whole,) = nano.generate("The", params)
    texts = ["", ""]
    for output in nano.stream("The", params):
        for completion in output.outputs:
            texts[completion.index] += completion.delta_text
    assert texts == [completion.text for completion in whole.outputs]


def test_agenerate(nano: Engine) -> None:
    async def read(prompt: str) -> str:
        text = ""
        async for output in nano.agenerate(prompt, GREEDY):
            text += output.outputs[0].delta_text
        return text

    async def both() -> list[str]:
        return list(await asyncio.gather(*[read(SUM) for _ in range(5)]))

    assert asyncio.run(both()) == [" 264"] * 5
    with pytest.raises(ValidationError, match="empty"):
        asyncio.run(read({"prompt_token_ids": []}))  # type: ignore[arg-type]


def test_step_loop(nano: Engine) -> None:
    first = nano.add_request(SUM, GREEDY)
    second = nano.add_request(SUM, GREEDY, request_id="mine")
    with pytest.raises(ValidationError, match="'mine' is in use"):
        nano.add_request(SUM, GREEDY, request_id="mine")
    deltas = {first: "", second: ""}
    finished = set()
    while nano.has_unfinished_requests():
        for output in nano.step():
            deltas[output.request_id] += output.outputs[0].delta_text
            finished |= {output.request_id} if output.finished else set()
    assert deltas == {first: " 264", "mine": " 264"} and finished == {first, "mine"}
    assert nano.step() == []


def test_abort_by_id(nano: Engine) -> None:
    request_id = nano.add_request(SUM, LONG)
    nano.step()
    assert nano.abort([request_id, "unknown"]) == 1
    assert nano.abort(request_id) == 0
    (output,) = nano.step()
    assert output.finished and output.outputs[0].finish_reason == "abort"
    assert not nano.has_unfinished_requests() and nano.stats().num_running == 0


def test_timeout_returns_what_there_is(nano: Engine) -> None:
    (output,) = nano.generate("The", {"temperature": 0, "max_tokens": None, "ignore_eos": True}, timeout=0.02)
    assert output.outputs[0].finish_reason == "abort" and len(output.outputs[0].token_ids) < 1000
    assert nano.stats().num_running == 0


def test_metrics(nano: Engine) -> None:
    (output,) = nano.generate(SUM, LONG)
    metrics = output.metrics
    assert metrics.num_prompt_tokens == len(output.prompt_token_ids) and metrics.num_generation_tokens == 40
    assert metrics.queue_time is not None and metrics.ttft is not None and metrics.e2e is not None
    assert 0 <= metrics.queue_time <= metrics.ttft <= metrics.e2e < 60
    assert metrics.generation_tps is not None and metrics.generation_tps > 0
    (stopped,) = nano.generate(SUM, GREEDY | {"stop": "64"})
    assert stopped.metrics.e2e is not None and 0 < stopped.metrics.e2e < 60


def test_stats_and_expert_selection(nano: Engine) -> None:
    prompts = [f"Q: {n} + {n} = ?\nA:" for n in range(20, 36)]
    params = LONG | {"max_tokens": 16}
    exact = [out.outputs[0].token_ids for out in nano.generate(prompts, params)]
    try:
        nano.set_expert_selection("oea:k0=1")
        assert nano.expert_selection.startswith("oea")
        nano.reset_stats()
        outputs = nano.generate(prompts, params | {"expert_selection": "exact"})
        assert [out.outputs[0].token_ids for out in outputs] == exact
        nano.reset_stats()
        nano.generate(prompts, params)
        stats, experts = nano.stats(), nano.expert_stats()
        assert stats.decode_steps > 0 and stats.bytes_read > 0 and stats.num_running == 0
        assert 1 <= experts.active < experts.union_before <= 32 and 0 < experts.retained_mass <= 1
        assert len(experts.layers) == 8 and experts.rows_per_step > 1
        with pytest.raises(ValidationError):
            nano.set_expert_selection("nonsense")
    finally:
        nano.set_expert_selection(None)
    assert nano.expert_selection == "topk"


def test_hidden_ends_of_text(nano_path: str, tmp_path: Path) -> None:
    """generation_config.json and the tokenizer may name ends that config.json does not."""
    space = 200  # any ordinary token
    for file in Path(nano_path).iterdir():
        if file.suffix in (".json", ".safetensors"):
            (tmp_path / file.name).symlink_to(file)
    config = tmp_path / "generation_config.json"
    config.unlink()
    config.write_text(f'{{"eos_token_id": [2, {space}], "do_sample": true, "top_k": 5, "max_new_tokens": 3}}')
    with Engine(tmp_path) as engine:
        params = engine.get_default_sampling_params()
        assert (params.temperature, params.top_k, params.max_tokens) == (1.0, 5, 3)
        forced = {"allowed_token_ids": [space], "max_tokens": 4}
        (output,) = engine.generate(SUM, forced)
        assert output.outputs[0].token_ids == [space] and output.outputs[0].stop_reason is None and output.text == ""
        (output,) = engine.generate(SUM, forced | {"ignore_eos": True})
        assert output.outputs[0].token_ids == [space] * 4


def test_without_tokenizer(nano_path: str) -> None:
    ids = lynx_rt.Tokenizer(nano_path).encode(SUM)
    with Engine(nano_path, skip_tokenizer_init=True) as engine:
        (output,) = engine.generate(ids, GREEDY | {"logprobs": 0})
        assert output.text == "" and output.outputs[0].token_ids[-1] == 2
        assert output.outputs[0].logprobs[0][output.outputs[0].token_ids[0]].decoded_token is None  # type: ignore[index]
        for call in (
            lambda: engine.generate("a"),
            lambda: engine.encode("a"),
            lambda: engine.generate(ids, {"stop": "x"}),
        ):
            with pytest.raises(ValidationError, match="tokenizer"):
                call()


def test_a_tokenizer_object(nano_path: str) -> None:
    backend = tokenizers.Tokenizer.from_file(f"{nano_path}/tokenizer.json")
    with Engine(nano_path, tokenizer=backend) as engine:
        assert engine.generate(SUM, GREEDY)[0].text == " 264"


def test_a_full_queue_leaves_nothing_behind(nano_path: str) -> None:
    with Engine(nano_path, max_num_seqs=1, max_num_queued_reqs=2) as engine:
        with pytest.raises(QueueFullError):
            engine.generate([SUM] * 8, GREEDY)
        stats = engine.stats()
        assert stats.num_running == 0 and stats.num_waiting == 0
        assert engine.generate([SUM], GREEDY)[0].text == " 264"


@pytest.mark.parametrize("max_num_seqs, most", [(128, 130), (2, 4)])
def test_the_queue_is_what_waits_for_a_place(nano_path: str, max_num_seqs: int, most: int) -> None:
    with Engine(nano_path, max_num_seqs=max_num_seqs, max_num_queued_reqs=2) as engine:
        assert len(engine.generate([SUM] * 3, GREEDY)) == 3
        assert len(engine.generate([SUM], {"n": 3, "temperature": 1, "max_tokens": 2})[0].outputs) == 3
        one = {"max_tokens": 1}
        assert len(engine.generate([SUM] * most, one)) == most
        with pytest.raises(QueueFullError, match=f"{max_num_seqs} places, the limit is 2"):
            engine.generate([SUM] * (most + 1), one)
        with pytest.raises(QueueFullError):
            engine.generate([SUM] * (most - 1), [one] * (most - 2) + [{"n": 3, "temperature": 1}])
        stats = engine.stats()
        assert stats.num_running == stats.num_waiting == 0


def test_own_ids_and_automatic_ones_do_not_meet(nano: Engine) -> None:
    names = [str(n) for n in range(3)]
    streams = [nano.stream(SUM, GREEDY, request_id=name) for name in names]
    outputs = nano.generate([SUM] * 4, GREEDY)
    assert not {output.request_id for output in outputs} & set(names)
    automatic = nano.stream(SUM, GREEDY)
    kind, number = automatic.request_id.split("-")
    taken = nano.stream(SUM, GREEDY, request_id=f"{kind}-{int(number) + 1}")
    assert nano.generate(SUM, GREEDY)[0].outputs[0].text == " 264"
    ids = [nano.add_request(SUM, GREEDY, request_id=name) for name in ("7", None)]
    assert len(set(ids)) == 2
    while nano.has_unfinished_requests():
        nano.step()
    for stream in [*streams, automatic, taken]:
        assert [output.outputs[0].text for output in stream][-1] == " 264"
    for wrong in ("", 5, b"a"):
        with pytest.raises(ValidationError, match="request_id: expected a string"):
            nano.add_request(SUM, GREEDY, request_id=wrong)  # type: ignore[arg-type]


def test_properties(nano: Engine) -> None:
    assert nano.max_model_len == 1024 and nano.device.startswith("cpu") and nano.model_config["num_experts"] == 32
    assert set(nano.memory) == {"weight", "kv", "workspace"} and nano.memory["weight"] > 40e6
    assert "qwen3_moe" in repr(nano) and not nano.is_closed


def test_close(nano_path: str) -> None:
    with Engine(nano_path) as engine:
        stream = engine.stream(SUM, LONG)
        next(stream)
    engine.close()
    assert engine.is_closed and "closed" in repr(engine)
    for call in (lambda: engine.generate(SUM), lambda: next(stream), engine.stats, engine.step):
        with pytest.raises(EngineClosedError):
            call()
    stream.close()


def test_a_missing_model(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        Engine(tmp_path / "nope")
    assert "nope" in str(caught.value) and isinstance(caught.value, FileNotFoundError)


def test_error_classes() -> None:
    for name in lynx_rt._ERRORS:
        error = getattr(lynx_rt, name)("expected 1, got 2", "field")
        assert str(error) == "expected 1, got 2" and error.field == "field" and isinstance(error, lynx_rt.LynxError)
    assert set(lynx_rt.__all__) <= set(dir(lynx_rt))
    assert all(getattr(lynx_rt, name) is not None for name in lynx_rt.__all__)
