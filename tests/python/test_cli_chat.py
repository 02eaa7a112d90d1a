"""`lynx-rt chat`: conversations through a pipe and on a terminal."""

from __future__ import annotations

import io
import json
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lynx_rt import Engine
from lynx_rt.cli.main import main

FIRST = "<|bos|>Q: 12 times 22 = ?\nA:"  # lynx-nano's template
SUM = "12 times 22 = ?"


def talk(monkeypatch: pytest.MonkeyPatch, lines: str | bytes, *argv: str) -> int:
    raw = lines if isinstance(lines, bytes) else lines.encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))
    return main(["chat", *argv])


def test_a_conversation(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every answer sees those before it, until /reset; nothing after /exit is read."""
    lines = f"{SUM}\n/show-prompt\nWhat is 3 + 4?\n/show-prompt\n/reset\n\n{SUM}\n/show-prompt\n/exit\nmore\n"
    assert talk(monkeypatch, lines) == 0
    out, err = capsys.readouterr()
    second = f"{FIRST} 264<|eos|>Q: What is 3 + 4?\nA:"
    assert out == f" 264\n{FIRST}\n 7\n{second}\n 264\n{FIRST}\n"
    assert err == "[the conversation is empty]\n"


def test_the_template_alone_writes_special_tokens(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, nano: Engine
) -> None:
    given = []
    stream = Engine.stream
    monkeypatch.setattr(
        Engine, "stream", lambda self, prompt, params: given.append(prompt) or stream(self, prompt, params)
    )
    assert talk(monkeypatch, f"{SUM}\n") == 0
    assert given == [{"prompt": FIRST, "prompt_token_ids": nano.encode(FIRST, add_special_tokens=False)}]
    assert nano.decode(given[0]["prompt_token_ids"], skip_special_tokens=False).count("<|bos|>") == 1


def test_its_commands(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    lines = f"/system Be brief.\n{SUM}\n/show-prompt\n/system\n//x\n/show-prompt\n/policy oea:k0=2\n/policy\n/help\n"
    assert talk(monkeypatch, lines, "--max-tokens", "4") == 0
    out, err = capsys.readouterr()
    assert f"<|bos|>Q: Be brief.\nQ: {SUM}\nA:\n" in out and "<|bos|>Q: /x\nA:\n" in out and "/reset  " in out
    assert err.count("[expert selection: oea:k0=2") == 2
    assert talk(monkeypatch, "/nothing\n/policy nothing\nWhat is 3 + 4?\n") == 1  # and goes on
    out, err = capsys.readouterr()
    assert out == " 7\n" and "no command /nothing; /help lists them" in err and "nothing" in err.splitlines()[1]


def test_options(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    template = tmp_path / "template.jinja"
    template.write_text("{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}A:")
    argv = ["-p", SUM, "--system", "Hi", "--chat-template", str(template), "--show-prompt"]
    assert talk(monkeypatch, "", *argv, "--max-tokens", "2", "--temperature", "0") == 0
    assert capsys.readouterr().err.startswith(f"<|bos|>system: Hi\nuser: {SUM}\nA:\n")
    assert talk(monkeypatch, "", "-p", SUM, "--stop", "6") == 0
    assert capsys.readouterr().out == " 2\n"
    assert talk(monkeypatch, f"Q: no\\\nA: yes\\\n{SUM}\n/show-prompt", "--escape") == 0  # one message of three lines
    assert capsys.readouterr().out.endswith(f"<|bos|>Q: Q: no\nA: yes\n{SUM}\nA:\n")
    assert talk(monkeypatch, f"{SUM}\n", "--max-tokens", "1") == 0
    assert capsys.readouterr().err == "[cut at --max-tokens, or at the end of the context]\n"


def test_mistakes_end_no_conversation(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert talk(monkeypatch, f"{'x ' * 100}\n{SUM}\n/show-prompt\n", "--max-model-len", "64") == 1
    out, err = capsys.readouterr()
    assert out == f" 264\n{FIRST}\n" and "prompt and output together may have 64" in err  # and was forgotten
    assert talk(monkeypatch, b"What is 3 + 4?\r\n\xe9\n") == 1
    out, err = capsys.readouterr()
    assert out == " 7\n" and "line 2 of standard input is not UTF-8 text: byte 0 is 0xe9" in err


def test_without_a_chat_template(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, nano_path: str, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(nano_path, model)
    config = json.loads((model / "tokenizer_config.json").read_text())
    del config["chat_template"]
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    assert talk(monkeypatch, f"Q: {SUM}\\nA:\nQ: {SUM}\\\nA:\n", str(model), "-e") == 0
    out, err = capsys.readouterr()
    assert out == " 264\n 264\n" and "no chat template: every line is completed by itself" in err
    assert talk(monkeypatch, "", str(model), "--system", "x") == 1
    assert "a system message needs a chat template" in capsys.readouterr().err


def test_ctrl_c_ends_the_answer_alone(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Engine.stream

    class Interrupted:
        """A stream whose user presses Ctrl-C at its third output."""

        def __init__(self, stream: Any) -> None:
            self.stream = stream

        def __enter__(self) -> Interrupted:
            return self

        def __exit__(self, *_: object) -> None:
            self.stream.close()

        def __iter__(self) -> Iterator[Any]:
            for count, output in enumerate(self.stream):
                if count == 2:
                    signal.raise_signal(signal.SIGINT)
                yield output

    monkeypatch.setattr(Engine, "stream", lambda *given: Interrupted(stream(*given)))
    assert talk(monkeypatch, f"{SUM}\n/show-prompt\nWhat is 3 + 4?\n/show-prompt\n", "--ignore-eos") == 0
    out = capsys.readouterr().out
    first = out.split("\n")[0]
    assert first.strip() in ("2", "26", "264")
    assert out.endswith(f"{FIRST} {first.strip()}<|eos|>Q: What is 3 + 4?\nA:\n")


def test_on_a_terminal() -> None:
    """Prompts and notes are shown, Ctrl-C at the prompt leaves nothing, Ctrl-D ends it."""
    code = "import pty, sys; sys.exit(pty.spawn([sys.executable, '-m', 'lynx_rt', 'chat']) >> 8)"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
    assert process.stdin is not None and process.stdout is not None
    shown, deadline = b"", time.monotonic() + 60

    def wait_for(text: bytes, again: bytes = b"") -> None:
        """again: a key to press once more where nothing happens."""
        nonlocal shown
        while text not in shown:
            assert time.monotonic() < deadline, shown
            if select.select([process.stdout], [], [], 2)[0]:
                shown += process.stdout.read(1024)
            else:
                process.stdin.write(again)
        shown = shown.split(text, 1)[1]

    try:
        wait_for(b"Ctrl-C ends an answer")
        wait_for(b"> ")
        process.stdin.write(SUM.encode() + b"\n")
        wait_for(b" 264\r\n")
        wait_for(b"tok/s]")
        wait_for(b"> ")
        process.stdin.write(b"\x03")
        # Python notices a signal that comes just before it begins to wait for a key only with the next key.
        wait_for(b"[/exit or Ctrl-D leaves]", again=b"\x03")
        wait_for(b"> ")
        process.stdin.write(b"\x04")
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        process.communicate()
