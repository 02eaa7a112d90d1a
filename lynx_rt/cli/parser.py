"""The argument parser of `lynx-rt`: argparse that answers a wrong name with the one that was meant."""

from __future__ import annotations

import argparse
import difflib
import re
import shlex
from collections.abc import Sequence
from typing import Any, NoReturn

# Option of llama.cpp, vLLM or transformers -> the option that does the same here, or why none does. Names have no dashes in
# front, and "-" for "_".
_NAMES_OF = {
    "--max-tokens": "predict n-predict num-predict max-new-tokens max-completion-tokens max-length output-len",
    "--temperature": "temp",
    "--max-model-len": "c ctx-size n-ctx context-size context-length max-seq-len max-seq-length",
    "--repetition-penalty": "repeat-penalty rep-penalty",
    "--n": "num-return-sequences best-of",
    "--stop": "r reverse-prompt stop-strings stop-string stop-words",
    "--logprobs": "n-probs num-logprobs top-logprobs",
    "--num-threads": "t threads threads-batch tb",
    "--device": "ngl gpu-layers n-gpu-layers main-gpu mg device-map",
    "--quantization": "q quant quantize load-in-4bit load-in-8bit",
    "--selection": "expert-selection policy policies",
    "--prompt": "prompts text input query",
    "--file": "prompt-file input-file",
    "--system": "sys system-prompt system-message",
    "--batch": "b batch-size",
    "--max-num-seqs": "np parallel max-running-requests",
    "--out": "o output output-file",
    "--seed": "s sampling-seed random-seed",
    "--dtype": "torch-dtype data-type",
    "--revision": "model-revision code-revision hf-revision",
    "greedy decoding is --temperature 0": "greedy do-sample",
    "beam search is not supported": "num-beams use-beam-search",
    "not needed, a model's own code is never run": "trust-remote-code",
    "the model is given without an option, after the command": "m model model-path model-name-or-path hf hf-repo hfr",
    "not supported, a model runs in one process on one device": (
        "tensor-parallel-size tp tp-size pipeline-parallel-size pp data-parallel-size dp enable-expert-parallel "
        "num-gpus tensor-split ts split-mode sm distributed-executor-backend"
    ),
    "the KV cache takes what --max-model-len needs of the free memory": (
        "gpu-memory-utilization mem-fraction-static kv-cache-memory-bytes"
    ),
    "downloads go where the variable HF_HOME says": "cache-dir download-dir local-dir",
    "an option of `lynx-rt serve`": "host port api-key served-model-name",
    "a conversation is `lynx-rt chat`": "i interactive cnv conversation chat interactive-first",
}
_MEANT = {name: meant for meant, names in _NAMES_OF.items() for name in names.split()}
_COMMANDS_OF = {
    "generate": "complete completion completions run infer inference cli",
    "chat": "interactive conversation talk",
    "inspect": "info show describe",
    "bench": "benchmark perf speed",
    "eval": "evaluate accuracy",
    "env": "collect-env doctor system",
    "serve": "server api api-server api_server",
}
_COMMANDS = {name: command for command, names in _COMMANDS_OF.items() for name in names.split()}
_NUMBER = re.compile(r"-\.?\d")


class Parser(argparse.ArgumentParser):
    """Says which option or command was meant, before argparse complains of a consequence of the mistake."""

    def __init__(self, **options: Any) -> None:
        # Abbreviated names are refused: --n would mean --num-threads where there is no --n.
        super().__init__(**options, allow_abbrev=False)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if args is not None:
            self._check_names(list(args))
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n`{self.prog} --help` shows the usage\n")

    @property
    def commands(self) -> dict[str, Parser]:
        """Returns the parsers of the commands one level down."""
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                return dict(action.choices)
        return {}

    def leaves(self) -> list[Parser]:
        """Yields the parsers of complete commands."""
        below = self.commands.values()
        return [leaf for parser in below for leaf in parser.leaves()] if below else [self]

    def unexpected(self, words: Sequence[str]) -> NoReturn:
        """Ends the program with an error about arguments that no option takes."""
        text = f"unexpected {shlex.join(words[:1])}"
        if "--prompt" in self._option_string_actions:
            text += f": the prompt is given by -p, as in `{self.prog} MODEL -p {shlex.join(words[:1])}`"
        self.error(text)

    def _check_names(self, args: list[str]) -> None:
        for word in args:
            if word == "--":
                return
            if len(word) > 1 and word.startswith("-") and " " not in word and not _NUMBER.match(word):
                name = word.partition("=")[0]
                if not self._knows(name):
                    self.error(self._about_option(name))
            elif self.commands:  # further arguments belong to the command
                if word not in self.commands:
                    self.error(self._about_command(word))
                return

    def _knows(self, name: str) -> bool:
        options = self._option_string_actions
        if name in options or name.startswith("--"):
            return name in options
        return name[:2] in options and f"-{name}" not in options and name[1:] not in _MEANT  # "-pTEXT"

    def _about_option(self, name: str) -> str:
        text = f"unknown option {name}"
        options = [option for option in self._option_string_actions if option.startswith("--")]
        plain = name.lstrip("-").replace("_", "-")
        if self.commands:
            others = [leaf.prog for leaf in self.leaves() if leaf is not self and leaf._knows(name)]
            return f"{text}: options follow the command, as in `{others[0]} {name}`" if others else text
        if name == "-n" and "--n" in options:  # -n is llama.cpp's, --n vLLM's
            return f"{text}: new tokens are --max-tokens N, completions per prompt --n N"
        if f"--{plain}" in options:
            return f"{text}: did you mean --{plain}?"
        meant = _MEANT.get(plain)
        if meant is not None and not meant.startswith("--"):
            return f"{text}: {meant}"
        if meant in options:
            return f"{text}: did you mean {meant}?"
        if len(plain) < 3:
            return text
        near = [option for option in options if option.startswith(f"--{plain}")]
        near = near or difflib.get_close_matches(f"--{plain}", options, 1, 0.7)
        return f"{text}: did you mean {near[0]}?" if near else text

    def _about_command(self, word: str) -> str:
        if word in ("download", "pull", "get"):
            return f"no command {word!r}: a model is downloaded when it is used by its name, or by `hf download`"
        if word in ("help", "version"):
            return f"no command {word!r}: did you mean `{self.prog} --{word}`?"
        if word != word.strip() or " " in word or "/" in word:
            return f"{word!r} is not a command: give one first, as in `{self.prog} generate MODEL -p PROMPT`"
        near = _COMMANDS.get(word) or next(iter(difflib.get_close_matches(word.lower(), self.commands, 1)), None)
        if near in self.commands:
            return f"no command {word!r}: did you mean `{self.prog} {near}`?"
        return f"no command {word!r}: there are {', '.join(self.commands)}"
