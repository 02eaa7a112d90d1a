"""`lynx-rt`: parses the command line, runs one command, and turns its end into an exit code.

Exit codes: 0 done, 1 failed (one line on standard error), 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import traceback
from collections.abc import Sequence

from lynx_rt.cli import bench, calibrate, env, eval, generate, inspect, record, simulate, study
from lynx_rt.errors import LynxError


class _Version(argparse.Action):
    """Looks the version up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        import lynx_rt

        print(f"lynx-rt {lynx_rt.__version__}")
        parser.exit()


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lynx-rt", description="Run, inspect and measure Mixture-of-Experts language models."
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    parser.add_argument("-v", "--verbose", action="store_true", help="show where an error came from")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in (generate, inspect, env, bench, eval, study, record, simulate, calibrate):
        module.add_command(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    args = build_parser().parse_args(argv)
    args.command_line = shlex.join(["lynx-rt", *argv])
    try:
        code: int = args.run(args)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader has gone; keep Python from complaining again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if args.verbose:
            traceback.print_exc()
        known = isinstance(error, (LynxError, OSError, ImportError))
        text = " ".join(str(error).split()) if known else f"unexpected {type(error).__name__}: {error}"
        print(f"lynx-rt: error: {text}", file=sys.stderr)
        return 1
