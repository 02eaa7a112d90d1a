"""`lynx-rt generate`: complete prompts."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lynx_rt.cli.options import add_engine_options, add_model, engine_options

if TYPE_CHECKING:
    from lynx_rt import Engine, RequestOutput, SamplingParams

_SAMPLING_OPTIONS = ("max_tokens", "temperature", "top_p", "top_k", "seed")


def add_command(commands: Any) -> None:
    parser = commands.add_parser("generate", help="complete prompts", description=__doc__)
    add_model(parser)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("-p", "--prompt", action="append", help="prompt text; may be given several times")
    source.add_argument("-f", "--file", type=Path, help="file with one prompt (default: standard input)")
    parser.add_argument("--max-tokens", type=int, help="new tokens (this and the next four: default as the model says)")
    parser.add_argument("--temperature", type=float, help="0 = always the most likely token")
    parser.add_argument("--top-p", type=float)
    parser.add_argument("--top-k", type=int)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--selection", default="topk", help="expert selection: topk (default), lynx, oea:k0=2, ...")
    add_engine_options(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object per prompt")
    parser.add_argument(
        "--stream", action=argparse.BooleanOptionalAction, help="show text as it comes (default: on a terminal)"
    )
    parser.set_defaults(run=run, parser=parser)


def run(args: argparse.Namespace) -> int:
    prompts = _prompts(args)
    from lynx_rt import Engine

    _check_sampling(args)
    stream = args.stream if args.stream is not None else sys.stdout.isatty()
    with Engine(args.model, expert_selection=args.selection, **engine_options(args)) as engine:
        given = {name: getattr(args, name) for name in _SAMPLING_OPTIONS if getattr(args, name) is not None}
        params = engine.get_default_sampling_params().clone(**given)
        if stream and not args.json:
            outputs = [_stream(engine, prompt, params) for prompt in prompts]
        else:
            outputs = engine.generate(prompts, params)
            for output in outputs:
                print(json.dumps(_record(output), ensure_ascii=False) if args.json else output.text)
    if sys.stderr.isatty():
        _print_speed(outputs)
    errors = [completion.error for output in outputs for completion in output.outputs if completion.error]
    for error in errors:
        print(f"lynx-rt: error: {error}", file=sys.stderr)
    return 1 if errors else 0


def _prompts(args: argparse.Namespace) -> list[str]:
    if args.prompt:
        return list(args.prompt)
    if args.file is not None:
        text = args.file.read_text(encoding="utf-8")
    elif sys.stdin is None or sys.stdin.isatty():
        args.parser.error("no prompt: give -p TEXT, -f FILE, or text on standard input")
    else:
        text = sys.stdin.read()
    return [text.removesuffix("\n")]  # editors and echo end a file with one


def _check_sampling(args: argparse.Namespace) -> None:
    """Wrong values are wrong usage; say so before a model is loaded."""
    from lynx_rt import SamplingParams, ValidationError

    try:
        SamplingParams(**{name: getattr(args, name) for name in _SAMPLING_OPTIONS if getattr(args, name) is not None})
    except ValidationError as error:
        args.parser.error(f"argument --{error.field.replace('_', '-')}: {error}")


def _stream(engine: Engine, prompt: str, params: SamplingParams) -> RequestOutput:
    for output in engine.stream(prompt, params):
        print(output.outputs[0].delta_text, end="", flush=True)
    print()
    return output


def _record(output: RequestOutput) -> dict[str, Any]:
    completion, metrics = output.outputs[0], output.metrics
    return {
        "prompt": output.prompt,
        "text": completion.text,
        "token_ids": completion.token_ids,
        "finish_reason": completion.finish_reason,
        "stop_reason": completion.stop_reason,
        "error": completion.error,
        "num_prompt_tokens": metrics.num_prompt_tokens,
        "num_generation_tokens": metrics.num_generation_tokens,
        "ttft_s": metrics.ttft,
        "e2e_s": metrics.e2e,
    }


def _print_speed(outputs: list[RequestOutput]) -> None:
    start = min(output.metrics.arrival_time for output in outputs)
    seconds = max(output.metrics.finish_time for output in outputs) - start
    tokens_in = sum(output.metrics.num_prompt_tokens for output in outputs)
    tokens_out = sum(output.metrics.num_generation_tokens for output in outputs)
    rate = tokens_out / seconds if seconds > 0 else 0.0
    print(f"[{tokens_in} tokens in, {tokens_out} out, {seconds:.2f} s, {rate:.1f} tok/s]", file=sys.stderr)
