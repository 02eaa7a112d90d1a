"""`lynx-rt`: parses the command line, runs one command, and turns its end into an exit code.

exit codes: 0 done, 1 failed (one line on standard error), 2 wrong usage, 130 interrupted (Ctrl-C), 141 the reader of the output
has gone
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import shlex
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Any, TextIO

from lynx_rt.cli import bench, calibrate, chat, env, eval, generate, inspect, pack, record, serve, simulate, study
from lynx_rt.cli.parser import Parser
from lynx_rt.errors import LynxError

_EPILOG = """\
examples:
  lynx-rt generate -p $'Q: 12 times 22 = ?\\nA:'
  lynx-rt chat
  lynx-rt inspect Qwen/Qwen3-30B-A3B

MODEL is a folder in the Hugging Face format or a name on the Hub; without one it is the small model that comes with lynx_rt.

"""
_INTERRUPTED, _NO_READER = 130, 141  # 128 + the signal's number, as in shells


class _Version(argparse.Action):
    """Looks up the version only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        import lynx_rt

        print(f"lynx-rt {lynx_rt.__version__}")
        parser.exit()


def build_parser() -> Parser:
    parser = Parser(
        prog="lynx-rt",
        description="Run, inspect and measure Mixture-of-Experts language models.",
        epilog=_EPILOG + (__doc__ or "").partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    verbose: dict[str, Any] = {"action": "store_true", "help": "show where an error came from"}
    parser.add_argument("-v", "--verbose", **verbose)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in (generate, chat, serve, inspect, pack, env, bench, eval, study, record, simulate, calibrate):
        module.add_command(commands)
    for leaf in parser.leaves():
        leaf.add_argument("-v", "--verbose", default=argparse.SUPPRESS, **verbose)
        leaf.set_defaults(parser=leaf)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code."""
    _open_closed_streams()
    # A character that the terminal's encoding lacks is written as an escape, so that it does not end the command.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    argv = sys.argv[1:] if argv is None else argv
    verbose = False
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            args, rest = build_parser().parse_known_args(argv)
            if rest:
                args.parser.unexpected(rest)
            verbose = args.verbose
            args.command_line = shlex.join(["lynx-rt", *argv])
            code: int = args.run(args)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        return _NO_READER
    except Exception as error:
        with contextlib.suppress(OSError):
            if verbose:
                traceback.print_exc()
            known = isinstance(error, (LynxError, OSError, ImportError))
            text = " ".join(str(error).split()) if known else f"unexpected {type(error).__name__}: {error}"
            print(f"lynx-rt: error: {text}", file=sys.stderr)
        return 1
    finally:
        for stream in (sys.stdout, sys.stderr):
            _flush_or_discard(stream)


def _open_closed_streams() -> None:
    """Opens /dev/null for standard streams that the caller has closed (`>&-`).

    Python has None for such a stream, and the next file that is opened would take its number: a model file could get the
    number of standard output.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is the closed stream's
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def _flush_or_discard(stream: TextIO) -> None:
    """Flushes a stream; if that fails (no reader, full disk), sends it to /dev/null, or Python would complain again at exit."""
    try:
        stream.flush()
    except OSError:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    with contextlib.suppress(OSError):
        print(f"lynx-rt: warning: {' '.join(str(message).split())}", file=sys.stderr)
