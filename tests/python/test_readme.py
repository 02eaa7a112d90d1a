"""The README's commands do what it says, and the other documents' commands at least parse.

tests/test_packaging.py runs the README's Python, tests/cpp/test_consumer.py its CMake.
"""

from __future__ import annotations

import io
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import lynx_rt
from lynx_rt.cli import bench
from lynx_rt.cli.main import build_parser, main
from lynx_rt.cli.sampling import unescape

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
DOCUMENTS = [
    ROOT / "README.md",
    *sorted([*ROOT.glob("docs/*.md"), *ROOT.glob("bench/**/*.md"), *ROOT.glob("csrc/*.md")]),
]

# The start of a command -> what makes it small, what is typed, and what it must print.
RUNS: dict[str, tuple[str, str, str]] = {
    "generate -p": ("", "", r"^ 264\n$"),
    "chat": ("", "12 times 22 = ?\n", r"^ 264\n$"),
    "inspect MODEL": ("", "", r"num_experts +32\n"),
    "pack": ("", "", r"experts\.bin: 256 experts of 8 layers"),
    "env": ("", "", r"usable_cores +\d"),
    "bench decode": ("--batch 1,2 --steps 4 --context 16", "", r"\nlynx +2 "),
    "bench serve": ("--num-prompts 2 --input-len 8 --output-len 4", "", r"\n- +inf +- +2 +0 "),
    "eval --tasks": ("--limit 1 --max-tokens 8", "", r"16 items of 16 tasks.*\nlynx +\d"),
    "eval MODEL": ("--max-tokens 8 --selection topk", "", r"\nint8 +\d.*\nint4 +\d"),
    "study --tasks": (
        "--tasks-only add --items 2 --batch 2 --seeds 0 --selection topk,lynx --no-plots",
        "",
        r"study/table\.md\n$",
    ),
    "study MODEL": (
        "--tasks-only add --items 2 --batch 2 --seeds 0 --selection topk --no-plots",
        "",
        r"out/table\.md\n$",
    ),
    "record": ("--items 16 --max-tokens 8", "", r"^r\.npz: \d+ rows of \d+ decode steps, topk\n$"),
    "simulate": ("", "", r"\nlynx\S* +16 "),
    "calibrate": ("--sequences 4 --length 16", "", r"^t\.safetensors: 64 tokens, frobenius\n"),
}


def commands(text: str) -> Iterator[tuple[list[str], bool]]:
    """Yields the arguments of each `lynx-rt` command in a document, and whether it is in a block (else between backticks)."""
    shell = "\n".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL)).replace("\\\n", "")
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    for pattern, source in ((r"(?m)\blynx-rt\s+(.+?)(?:;|$)", shell), (r"`lynx-rt\s+([^`]+)`", prose)):
        for found in re.findall(pattern, source):
            words = shlex.split(found.replace("$'", "'"), comments=True)
            yield [unescape(word) for word in words[: words.index(">") if ">" in words else None]], source is shell


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which the README's commands run as they stand."""
    monkeypatch.chdir(tmp_path)
    for name in ("bench", "README.md"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "MODEL").symlink_to(lynx_rt.shipped_model())
    (tmp_path / "tasks").mkdir()
    few = (ROOT / "bench/tasks/add.jsonl").read_text().splitlines(keepends=True)[:2]
    (tmp_path / "tasks" / "add.jsonl").write_text("".join(few))
    monkeypatch.setattr(bench, "_BANDWIDTH_BYTES", 1 << 24)
    return tmp_path


def test_commands_do_what_the_readme_says(
    workplace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They run in the README's order, because `simulate` reads what `record` wrote."""
    stands_for = {"FILE": "README.md", "OUT": "out"}
    unused = set(RUNS)
    for argv, _ in commands(README):
        line = " ".join(argv)
        if argv[0] == "serve":  # it runs until a signal comes: tests/server has it
            build_parser().parse_args(argv)
            continue
        [start] = [start for start in RUNS if line.startswith(start) and (start != "chat" or line == start)] or [None]
        assert start is not None, f"say in RUNS how to run: lynx-rt {line}"
        unused.discard(start)
        small, typed, expected = RUNS[start]
        stands_for["DIR"] = "study" if start == "study --tasks" else "tasks"
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(typed.encode())))
        code = main([*[stands_for.get(word, word) for word in argv], *small.split()])
        out, err = capsys.readouterr()
        assert code == 0, f"lynx-rt {line}: {err}"
        assert re.search(expected, out, re.DOTALL), f"lynx-rt {line} printed {out}"
    assert not unused, "no longer in the README"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_commands_of_documents_are_right(document: Path) -> None:
    """Options and commands exist, and their values are of the right kind."""
    parser = build_parser()
    for argv, block in commands(document.read_text()):
        if block:
            parser.parse_args(argv)
            continue
        level = parser
        while level.commands:  # a sentence may have only a part of a command
            level = level.commands[argv.pop(0)]
        assert [word for word in argv if word.startswith("-") and word not in level._option_string_actions] == []


def test_every_command_is_in_the_readme() -> None:
    table = README.split("## Command line")[1].split("\n## ")[0]
    for leaf in build_parser().leaves():
        assert f"`{leaf.prog}" in table, leaf.prog


def test_shell_blocks() -> None:
    """Scripts that they name are there, can be run, and parse; the rest is CMake's."""
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL):
        assert subprocess.run(["bash", "-n"], input=block, text=True, check=False).returncode == 0
        for line in filter(None, map(str.strip, block.splitlines())):
            program = shlex.split(line, comments=True)[0]
            script = ROOT / program
            if script.is_file():
                assert script.stat().st_mode & 0o111, program
                assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
            else:
                assert program in ("cmake", "curl", "lynx-rt"), program


def test_files_that_the_readme_names_exist() -> None:
    names = re.findall(r"`((?:docs|bench|csrc|tests|tools|examples|\.ci)/[\w./-]*)`", README)
    assert len(names) > 10
    assert [name for name in names if not (ROOT / name).exists()] == []
