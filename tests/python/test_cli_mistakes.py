"""Answers of the `lynx-rt` command to mistakes, and its exit when input or output is unusual."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lynx_rt import ValidationError
from lynx_rt.cli.files import check_output, check_output_folder
from lynx_rt.cli.main import build_parser, main
from lynx_rt.cli.parser import _COMMANDS_OF, _NAMES_OF
from lynx_rt.cli.sampling import looks_escaped, unescape
from lynx_rt.research.eval import load_items
from lynx_rt.text.text_file import decode_text

SUM = "Q: 12 times 22 = ?\nA:"


def usage_error(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    out, err = capsys.readouterr()
    assert caught.value.code == 2 and out == "" and err.count("\n") == 2
    return err


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("generate --max-new-tokens 5", "unknown option --max-new-tokens: did you mean --max-tokens?"),
        ("generate --max_tokens=5", "did you mean --max-tokens?"),
        ("generate --max-tokns 5", "did you mean --max-tokens?"),
        ("generate --n-predict 5", "did you mean --max-tokens?"),
        ("generate -n 5", "new tokens are --max-tokens N, completions per prompt --n N"),
        ("generate -temp 0", "did you mean --temperature?"),
        ("generate --max-mod 5", "did you mean --max-model-len?"),
        ("generate -prompt x", "did you mean --prompt?"),
        ("generate --ctx-size 5", "did you mean --max-model-len?"),
        ("generate -c 5", "did you mean --max-model-len?"),
        ("generate --tensor-parallel-size 2", "a model runs in one process on one device"),
        ("generate -tp 2", "a model runs in one process on one device"),
        ("generate --gpu-memory-utilization 0.9", "--max-model-len"),
        ("generate --trust-remote-code", "never run"),
        ("generate -m x -p y", "the model is given without an option"),
        ("generate -cnv", "`lynx-rt chat`"),
        ("generate --nothing-like-it", "unknown option --nothing-like-it\n"),
        ("inspect --max-new-tokens 5", "unknown option --max-new-tokens\n"),
        ("eval --taks x", "did you mean --tasks?"),
        ("bench decode --stesp 3", "did you mean --steps?"),
        ("-p x", "options follow the command, as in `lynx-rt generate -p`"),
        ("generate --port 1", "an option of `lynx-rt serve`"),
        ("generat -p x", "did you mean `lynx-rt generate`?"),
        ("run -p x", "did you mean `lynx-rt generate`?"),
        ("help", "did you mean `lynx-rt --help`?"),
        ("lynx_rt/models/lynx-nano", "give one first, as in `lynx-rt generate MODEL -p PROMPT`"),
        ("nonsense", "there are generate, chat, serve, inspect"),
        ("bench encode", "did you mean `lynx-rt bench decode`?"),
        ("generate --max-tokens x", "--max-tokens: must be a whole number, got 'x'"),
        ("generate --top-p x", "--top-p: must be a number, got 'x'"),
        ("generate -p x --top-p 2", "argument --top-p: "),
        ("generate -p x --stop a --stop=", "argument --stop: "),
        ("generate -p x --n 0", "argument --n: "),
        ("generate -p x --n 2 --temperature 0", "argument --n: "),
        ("generate -p x --logprobs 2", "needs --json"),
        ("generate -p x --stream --json", "argument --stream: not with --json"),
        ("generate -p x --max-model-len 0", "must be at least 1, got 0"),
        ("generate -p x --num-threads -1", "must be at least 1, got -1"),
        ("eval --tasks x --limit 0", "must be at least 1, got 0"),
        ("eval --tasks x --batch many", "must be a whole number, got 'many'"),
        ("bench decode --batch 1,,2", "must be a whole number, got ''"),
        ("simulate x --batch 0", "must be at least 1, got 0"),
        ("study --tasks x --out y --seeds -1", "must be at least 0, got -1"),
        ("study --tasks x --out y --seeds a", "must be a whole number, got 'a'"),
        ("chat --n 2", "unknown option --n\n"),
    ],
)  # fmt: skip
def test_wrong_usage_says_what_was_meant(capsys: pytest.CaptureFixture[str], line: str, says: str) -> None:
    assert says in usage_error(capsys, *line.split())


def test_a_prompt_in_the_place_of_the_model(capsys: pytest.CaptureFixture[str], nano_path: str) -> None:
    for argv in (
        ["generate", "Q: 1+1"],
        ["generate", "hello"],
        ["chat", "What is 1 + 1?"],
        ["generate", "Q: 1 + 1", "-f", "-"],
    ):
        assert f"the prompt is given by -p, as in `lynx-rt {argv[0]} -p PROMPT`" in usage_error(capsys, *argv)
    err = usage_error(capsys, "generate", nano_path, "Q: 1+1")
    assert "unexpected 'Q: 1+1': the prompt is given by -p, as in `lynx-rt generate MODEL -p 'Q: 1+1'`" in err
    assert "the prompt is empty" in usage_error(capsys, "generate", "-p", "")


def test_hints_name_what_exists() -> None:
    """Every option and command that a hint leads to, and no option or command that needs no hint."""
    parser = build_parser()
    leaves = parser.leaves()
    options = {option for leaf in leaves for option in leaf._option_string_actions}
    assert {meant for meant in _NAMES_OF if meant.startswith("--")} <= options
    assert set(_COMMANDS_OF) <= set(parser.commands)
    names = [name for names in _NAMES_OF.values() for name in names.split()]
    assert len(names) == len(set(names))
    assert not set(parser.commands) & {name for names in _COMMANDS_OF.values() for name in names.split()}


def test_every_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    parser = build_parser()
    for argv in ([], *([*leaf.prog.split()[1:]] for leaf in parser.leaves())):
        with pytest.raises(SystemExit) as caught:
            main([*argv, "--help"])
        out = capsys.readouterr().out
        assert caught.value.code == 0 and out.startswith("usage: lynx-rt")
        assert argv or all(text in out for text in ("exit codes: 0 done", "141", "chat", "simulate"))


@pytest.mark.parametrize("place", ["before", "after"])
def test_verbose(capsys: pytest.CaptureFixture[str], place: str) -> None:
    argv = ["generate", "/no/such/model", "-p", "x"]
    assert main(["-v", *argv] if place == "before" else [*argv, "-v"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_hints_about_models(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Those of tests/python/test_model_path.py, through every command that takes a model."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "add.jsonl").write_text('{"task": "add", "prompt": "x", "answer": "y"}\n')
    more = {
        "generate": ["-p", "x"],
        "bench decode": [],
        "eval": ["--tasks", str(tasks)],
        "study": ["--tasks", str(tasks), "--out", str(tmp_path / "study"), "--no-plots"],
        "record": ["--tasks", str(tasks), "--out", str(tmp_path / "r.npz")],
        "calibrate": ["--tasks", str(tasks), "--out", str(tmp_path / "t.safetensors")],
    }
    for command in ("generate", "chat", "inspect", "bench decode", "eval", "study", "record", "calibrate"):
        argv = command.split()
        assert main([*argv, str(file), *more.get(command, [])]) == 1
        assert f"{file}: truncated: version takes 4 bytes at byte 4, the file has 4" in capsys.readouterr().err, command
        assert main([*argv, "org/name", "--revision", "v2", *more.get(command, [])]) == 1
        assert "'org/name' is not a folder here" in capsys.readouterr().err, command


def test_results_that_cannot_be_written(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Said before the work: the models and tasks named here do not exist either."""
    missing, folder = str(tmp_path / "missing" / "x"), str(tmp_path)
    model = ["/no/such/model", "--tasks", "/no/such/tasks"]
    for option, argv in [
        ("json", ["eval", *model]),
        ("json", ["simulate", "/no/such/recording"]),
        ("out", ["record", *model]),
        ("routed-experts", ["record", *model]),
        ("out", ["calibrate", *model]),
    ]:
        assert main([*argv, f"--{option}", missing]) == 1
        assert f"--{option}: the folder {tmp_path / 'missing'} of x does not exist" in capsys.readouterr().err
        assert main([*argv, f"--{option}", folder]) == 1
        assert f"--{option}: {folder} is a folder, expected a file" in capsys.readouterr().err
    file = tmp_path / "file"
    file.touch()
    assert main(["study", *model, "--out", str(file), "--no-plots"]) == 1
    assert "it is a file" in capsys.readouterr().err
    assert main(["study", *model, "--out", str(file / "x"), "--no-plots"]) == 1
    assert "Not a directory" in capsys.readouterr().err


def test_files_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    with pytest.raises(ValidationError, match="x cannot be written"):
        check_output(tmp_path / "x", "json")
    with pytest.raises(ValidationError, match="cannot be written to"):
        check_output_folder(tmp_path, "out")
    check_output(None, "json")


def test_record_of_too_few_items(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "add.jsonl").write_text('{"task": "add", "prompt": "x", "answer": "y"}\n')
    argv = ["record", "/no/such/model", "--tasks", str(tmp_path), "--routed-experts", str(tmp_path / "e.safetensors")]
    assert main([*argv, "--batch", "4"]) == 1
    assert "1 items never fill a step of --batch 4" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("Q: café = ?\nA:".encode("latin1"), "byte 6 is 0xe9 (line 1)"),
        (b"a\nb\n\xff", "byte 4 is 0xff (line 3)"),
        (b"\xef\xbb\xbfa\xff", "byte 4 is 0xff (line 1)"),
        ("x".encode("utf-16"), "is UTF-16, not UTF-8"),
        (b"", "is empty, expected a prompt"),
        (b"\xef\xbb\xbf\r\n", "is empty, expected a prompt"),
    ],
)
def test_prompt_files(capsys: pytest.CaptureFixture[str], tmp_path: Path, content: bytes, says: str) -> None:
    file = tmp_path / "prompt"
    file.write_bytes(content)
    assert main(["generate", "-f", str(file)]) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"lynx-rt: error: {file} ") and says in err and err.count("\n") == 1


def test_text_of_any_editor(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert decode_text("\ufeffé\r\nb\rc\n".encode(), "x", "file") == "é\nb\rc\n"
    file = tmp_path / "prompt"
    file.write_bytes(b"\xef\xbb\xbf" + SUM.replace("\n", "\r\n").encode() + b"\r\n")
    assert main(["generate", "-f", str(file)]) == 0
    assert capsys.readouterr().out == " 264\n"


def test_task_files(tmp_path: Path) -> None:
    """As prompt files; a line separator of Unicode inside a string ends no line."""
    file = tmp_path / "add.jsonl"
    file.write_bytes('\ufeff{"task": "add", "prompt": "a\u2028b", "answer": "1"}\r\n'.encode())
    assert [item.prompt for item in load_items(tmp_path)] == ["a\u2028b"]
    for content, says in [(b"\n\xe9", "byte 1 is 0xe9"), (b'{"task": "x", "prompt": 5, "answer": "1"}', "add.jsonl:1")]:
        file.write_bytes(content)
        with pytest.raises(ValidationError, match=says) as caught:
            load_items(tmp_path)
        assert str(file) in str(caught.value)


def test_escapes(capsys: pytest.CaptureFixture[str]) -> None:
    assert unescape(r"a\nb\t\\n\q") == "a\nb\t\\n\\q"
    assert looks_escaped(r"Q: x\nA:") and not looks_escaped(r"\nu + \nabla") and not looks_escaped(SUM)
    assert main(["generate", "-p", r"Q: 12 times 22 = ?\nA:", "--max-tokens", "1"]) == 0
    assert "-e makes it a line break" in capsys.readouterr().err


def shell(line: str, **options: str) -> subprocess.CompletedProcess[str]:
    command = f'run() {{ "{sys.executable}" -m lynx_rt "$@"; }}; {line}'
    return subprocess.run(
        ["bash", "-c", command],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONUNBUFFERED": "", **options},
    )


@pytest.mark.parametrize(
    ("line", "code", "err"),
    [
        ('run generate -p "$SUM" >&-', 0, ""),
        ('run generate -p "$SUM" >&- 2>&- <&-', 0, ""),
        ("run generate <&-", 2, "no prompt"),
        ('run generate -p "$SUM" >/dev/full', 1, "lynx-rt: error: [Errno 28] No space left on device\n"),
        ("PYTHONIOENCODING=ascii run chat --max-tokens 1 -p é <<< /show-prompt | grep -q xe9", 0, "[cut at"),
        ('PYTHONIOENCODING=ascii run generate -p "é $SUM" --json --max-tokens 1 | grep -q u00e9', 0, ""),
        ('set -o pipefail; run generate --json -p "$SUM" -p "$SUM" | true', 141, ""),
    ],
)
def test_streams(line: str, code: int, err: str) -> None:
    done = shell(line, SUM=SUM)
    assert done.returncode == code and done.stdout == ""
    assert done.stderr == err if err.endswith("\n") or not err else err in done.stderr
