"""Sampling options of `generate` and `chat`: the fields of SamplingParams."""

from __future__ import annotations

import argparse
import re
from typing import Any

from lynx_rt.cli.options import integer, number

_ESCAPE = re.compile(r"\\([nrt\\])")
_ESCAPED = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\"}


def add_sampling_options(parser: argparse.ArgumentParser, *, several: bool) -> None:
    """Adds the options. several: also --n and --logprobs, for output that can hold them."""
    group = parser.add_argument_group("sampling", "Default: as the model's generation_config.json says.")
    group.add_argument("--max-tokens", type=integer, metavar="N", help="new tokens, at most")
    group.add_argument("--min-tokens", type=integer, metavar="N", help="no end of the text before these")
    group.add_argument("--temperature", type=number, metavar="T", help="0 = always the most likely token")
    group.add_argument(
        "--top-p", type=number, metavar="P", help="of the most likely tokens that have this share together"
    )
    group.add_argument("--top-k", type=integer, metavar="K", help="of the K most likely tokens")
    group.add_argument("--min-p", type=number, metavar="P", help="of tokens with this share of the most likely one's")
    group.add_argument("--seed", type=integer, help="of what is drawn")
    group.add_argument("--stop", action="append", metavar="TEXT", help="ends the answer; may be given several times")
    group.add_argument("--ignore-eos", action="store_true", default=None, help="go on after the model's end of text")
    group.add_argument("--presence-penalty", type=number, metavar="X", help="-2 to 2, on tokens that were generated")
    group.add_argument(
        "--frequency-penalty", type=number, metavar="X", help="-2 to 2, each time that one was generated"
    )
    group.add_argument("--repetition-penalty", type=number, metavar="X", help="above 0, 1 = none; on the prompt's too")
    if several:
        group.add_argument("--n", type=integer, metavar="N", help="completions of each prompt")
        group.add_argument(
            "--logprobs", type=integer, metavar="N", help="with --json: of each token and the N most likely"
        )
    group.add_argument(
        "-e",
        "--escape",
        action="store_true",
        help=r"\n, \r, \t and \\ in prompts and --stop stand for line breaks, ...",
    )
    parser.set_defaults(sampling_names=[action.dest for action in group._group_actions if action.dest != "escape"])


def sampling_fields(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the fields of SamplingParams that were given. A wrong value is wrong usage, before a model is loaded."""
    from lynx_rt import SamplingParams, ValidationError

    given = {name: getattr(args, name) for name in args.sampling_names if getattr(args, name) is not None}
    if args.escape and "stop" in given:
        given["stop"] = [unescape(text) for text in given["stop"]]
    try:
        SamplingParams(**{"max_tokens": None, **given})  # n > 1 may still fail later, with the model's own temperature
    except ValidationError as error:
        args.parser.error(f"argument --{error.field.replace('_', '-')}: {error}")
    return given


def unescape(text: str) -> str:
    r"""Replaces \n, \r, \t and \\ by what they stand for; other backslashes stay."""
    return _ESCAPE.sub(lambda match: _ESCAPED[match[1]], text)


def looks_escaped(text: str) -> bool:
    r"""Whether a "\n" in the text was probably meant as a line break; "\nu" and the like are LaTeX."""
    return re.search(r"\\n(?![a-z])", text) is not None and "\n" not in text
