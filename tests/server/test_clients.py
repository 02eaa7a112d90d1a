"""Clients of other projects on a live server: lm-eval, LangChain, LiteLLM, and schemathesis, which tries what the schema of the
API allows and what it does not. All come with the extra `test-serve`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from live_server import LiveServer, serving
from parrot import CALLS

from lynx_rt import Engine

MISSING = [name for name in ("lm_eval", "langchain_openai", "litellm", "schemathesis") if find_spec(name) is None]
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(MISSING), reason=f"the extra test-serve brings {MISSING}")]
SUM = "12 times 22 = ?"
ADD: dict[str, Any] = {
    "title": "add",
    "description": "adds",
    "type": "object",
    "properties": {"a": {"type": "integer"}},
    "required": ["a"],
    "additionalProperties": False,
}


# --- lm-eval


def evaluate(folder: Path, server: LiveServer, model: str, path: str, task: str, *options: str) -> list[dict]:
    """Runs lm-eval on a task of this file and returns its samples."""
    settings = f"model=lynx-nano,base_url={server.url}{path},num_concurrent=1,max_retries=1"
    tokenizer = f"tokenizer_backend=huggingface,tokenizer={server_model()},tokenized_requests=True"
    if "chat" in model:
        tokenizer = "tokenizer_backend=none,tokenized_requests=False"  # the server applies the chat template
    command = [sys.executable, "-m", "lm_eval", "run", "--model", model, "--model_args", f"{settings},{tokenizer}"]
    command += ["--tasks", task, "--include_path", str(folder), "--output_path", str(folder / "out"), "--log_samples"]
    offline = {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HOME": str(folder / "hub"),
        "OPENAI_API_KEY": "EMPTY",
    }
    done = subprocess.run(
        [*command, *options], capture_output=True, text=True, timeout=280, check=False, env={**os.environ, **offline}
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    [samples] = (folder / "out").rglob("samples_*.jsonl")
    return [json.loads(line) for line in samples.read_text().splitlines()]


def server_model() -> str:
    import lynx_rt

    return lynx_rt.shipped_model()


def write_task(folder: Path, name: str, lines: list[dict], text: str) -> None:
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    source = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}\ntest_split: test\n"
    (folder / f"{name}.yaml").write_text(f"task: {name}\n{source}{text}")


def test_lm_eval_scores_as_the_engine(tmp_path: Path, server: LiveServer, nano: Engine) -> None:
    """local-completions sums what the answers say of the prompt's tokens: the numbers of Engine.score."""
    lines = [
        {"question": f"Q: {a} times {b} = ?\nA:", "choices": [f" {a * b}", f" {a * b + 1}"]}
        for a, b in ((12, 22), (7, 9))
    ]
    text = (
        'output_type: multiple_choice\ndoc_to_text: "{{question}}"\ndoc_to_choice: choices\ndoc_to_target: 0\n'
        'target_delimiter: ""\nmetric_list: [{metric: acc}]\n'
    )
    write_task(tmp_path, "sums", lines, text)
    samples = evaluate(tmp_path, server, "local-completions", "/v1/completions", "sums")
    assert len(samples) == 2
    for sample in samples:
        doc = sample["doc"]
        question = {"prompt_token_ids": nano.encode(doc["question"], add_special_tokens=False)}  # as lm-eval sends it
        expected = nano.score([question] * 2, doc["choices"])
        got = [float(answer[0][0]) for answer in sample["resps"]]
        assert got == pytest.approx(expected, abs=1e-4)
        assert sample["acc"] == 1.0


def test_lm_eval_chats(tmp_path: Path, server: LiveServer) -> None:
    lines = [{"question": f"{a} times {b} = ?", "answer": str(a * b)} for a, b in ((12, 22), (7, 9), (3, 5))]
    text = (
        'output_type: generate_until\ndoc_to_text: "{{question}}"\ndoc_to_target: "{{answer}}"\n'
        'generation_kwargs: {until: ["Q:", "A:", "|", "#", "?"], max_gen_toks: 8, temperature: 0}\n'
        "metric_list: [{metric: exact_match}]\n"
    )
    write_task(tmp_path, "chats", lines, text)
    path = "/v1/chat/completions"
    samples = evaluate(tmp_path, server, "local-chat-completions", path, "chats", "--apply_chat_template")
    expected = [server.chat(line["question"], temperature=0)["choices"][0]["message"]["content"] for line in lines]
    assert [sample["resps"][0][0] for sample in samples] == expected


# --- LangChain


def test_langchain(server: LiveServer) -> None:
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(base_url=f"{server.url}/v1", api_key="EMPTY", model="lynx-nano", temperature=0)
    assert model.invoke(SUM).content == " 264"
    chunks = list(model.stream(SUM, stream_usage=True))
    assert "".join(str(chunk.content) for chunk in chunks) == " 264"
    assert any(chunk.usage_metadata and chunk.usage_metadata["output_tokens"] > 0 for chunk in chunks)
    answer = model.with_structured_output(ADD, method="json_schema", strict=True).invoke(SUM)
    assert isinstance(answer, dict) and isinstance(answer["a"], int)


def test_langchain_tools(server: LiveServer, parrot: str) -> None:
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(base_url=f"{server.url}/v1", api_key="EMPTY", model="lynx-nano", temperature=0)
    [call] = model.bind_tools([ADD], tool_choice="add").invoke(SUM).tool_calls
    assert call["name"] == "add" and isinstance(call["args"]["a"], int)
    talker = ChatOpenAI(base_url=f"{parrot}/v1", api_key="EMPTY", model="parrot").bind_tools([ADD])
    expected = [("add", {"a": 1, "b": "x y"})]
    assert [(call["name"], call["args"]) for call in talker.invoke(CALLS).tool_calls][:1] == expected


# --- LiteLLM


@pytest.mark.parametrize("provider", ["hosted_vllm", "openai"])
def test_litellm(server: LiveServer, provider: str) -> None:
    import litellm

    options: dict[str, Any] = {"model": f"{provider}/lynx-nano", "api_base": f"{server.url}/v1", "api_key": "EMPTY"}
    options |= {"messages": [{"role": "user", "content": SUM}], "temperature": 0}
    answer = litellm.completion(**options)
    assert answer.choices[0].message.content == " 264" and answer.usage.completion_tokens > 0
    stream = litellm.completion(**options, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == " 264"
    with pytest.raises(litellm.BadRequestError):
        litellm.completion(**{**options, "temperature": -1})
    too_long = {**options, "messages": [{"role": "user", "content": "word " * 3000}]}
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(**too_long)


# --- schemathesis


def test_no_request_makes_the_server_fail(tmp_path: Path) -> None:
    """Requests made from /openapi.json, right and wrong, are answered without a 500."""
    with serving("--request-timeout", "20") as live:
        command = [sys.executable, "-m", "schemathesis.cli", "run", f"{live.url}/openapi.json", "--seed", "1"]
        command += ["--checks", "not_a_server_error", "--max-examples", "5", "--phases", "coverage,fuzzing"]
        command += ["--exclude-path-regex", "/v1/lynx/events|/ready", "--generation-database", "none"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False, cwd=tmp_path)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
        assert live.process.poll() is None
        live.wait_idle(30)
        assert live.complete(prompt="Q: 12 times 22 = ?\nA:", temperature=0)["choices"][0]["text"] == " 264"
