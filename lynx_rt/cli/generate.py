"""`lynx-rt generate`: complete prompts."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lynx_rt.cli.files import read_input
from lynx_rt.cli.options import (
    add_engine_options,
    add_image_options,
    add_model,
    engine_options,
    image_files,
    model_folder,
    positive_int,
)
from lynx_rt.cli.sampling import add_sampling_options, looks_escaped, sampling_fields, unescape

if TYPE_CHECKING:
    from lynx_rt import CompletionOutput, Engine, RequestOutput, SamplingParams
    from lynx_rt.engine.outputs import TokenLogprobs
    from lynx_rt.text.prompts import Prompt


def add_command(commands: Any) -> None:
    parser = commands.add_parser("generate", help="complete prompts", description=__doc__)
    add_model(parser)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("-p", "--prompt", action="append", help="prompt text; may be given several times")
    source.add_argument(
        "-f", "--file", type=Path, help="UTF-8 file with one prompt, - = standard input (default: standard input)"
    )
    add_image_options(parser, "for the prompt, which has a placeholder for each, or else begins with them")
    parser.add_argument("--json", action="store_true", help="one JSON object per completion")
    parser.add_argument(
        "--stream", action=argparse.BooleanOptionalAction, help="show text as it comes (default: on a terminal)"
    )
    parser.add_argument("--selection", default="topk", help="expert selection: topk (default), lynx, oea:k0=2, ...")
    add_sampling_options(parser, several=True)
    add_engine_options(parser)
    add_length(parser)
    parser.add_argument("--max-num-seqs", type=positive_int, default=128, help="running requests (default: 128)")
    parser.set_defaults(run=run)


def add_length(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-model-len", type=positive_int, metavar="N", help="tokens of prompt and output (default: the model's)"
    )


def run(args: argparse.Namespace) -> int:
    given = sampling_fields(args)
    if args.logprobs is not None and not args.json:
        args.parser.error("argument --logprobs: needs --json")
    if args.stream and (args.json or (args.n or 1) > 1):
        args.parser.error("argument --stream: not with --json, and for one completion only")
    check_not_a_prompt(args)
    texts = _prompts(args)
    images = image_files(args)
    if images and len(texts) > 1:
        args.parser.error("argument --image: for one prompt only")
    folder = model_folder(args)
    from lynx_rt import Engine

    utf8 = "utf" in (sys.stdout.encoding or "utf-8").lower()
    stream = args.stream if args.stream is not None else sys.stdout.isatty()
    options = {"max_model_len": args.max_model_len, "max_num_seqs": args.max_num_seqs, **engine_options(args)}
    options["mm_processor_kwargs"] = args.mm_processor_kwargs
    with Engine(folder, expert_selection=args.selection, **options) as engine:
        params = engine.get_default_sampling_params().clone(**given)
        prompts = [_with_images(text, images, engine) for text in texts]
        if stream and not args.json and params.n == 1:
            outputs = [_stream(engine, prompt, params) for prompt in prompts]
        else:
            outputs = engine.generate(prompts, params)
            for output in outputs:
                for completion in output.outputs:
                    if args.json:
                        print(json.dumps(_record(output, completion), ensure_ascii=not utf8))
                    else:
                        print(completion.text)
    if sys.stderr.isatty():
        print_speed(outputs)
    errors = [completion.error for output in outputs for completion in output.outputs if completion.error]
    for error in errors:
        print(f"lynx-rt: error: {error}", file=sys.stderr)
    return 1 if errors else 0


def check_not_a_prompt(args: argparse.Namespace) -> None:
    """Ends the program for a prompt in the model's place, as in `lynx-rt generate "Q: 1 + 1 ="`."""
    from lynx_rt.engine.hub import is_id

    missing = not os.path.exists(args.model) and not is_id(args.model)
    if missing and (any(map(str.isspace, args.model)) or (args.prompt is None and os.sep not in args.model)):
        args.parser.error(
            f"{args.model!r} stands in the model's place and is no model folder; the prompt is given by -p, as in "
            f"`{args.parser.prog} -p PROMPT`"
        )


def _prompts(args: argparse.Namespace) -> list[str]:
    if args.prompt:
        prompts = [unescape(text) if args.escape else text for text in args.prompt]
        if "" in prompts:
            args.parser.error("argument -p: the prompt is empty")
        if not args.escape and any(map(looks_escaped, prompts)):
            print(r"lynx-rt: note: \n in the prompt is a backslash and an n; -e makes it a line break", file=sys.stderr)
        return prompts
    if args.file is None and (sys.stdin is None or sys.stdin.isatty()):
        args.parser.error("no prompt: give -p TEXT, -f FILE, or text on standard input")
    # Editors and echo end a file with a line break.
    text = read_input(args.file or Path("-"), "file").removesuffix("\n")
    if not text:
        from lynx_rt import ValidationError

        source = "standard input" if str(args.file or "-") == "-" else args.file
        raise ValidationError(f"{source} is empty, expected a prompt", "file")
    return [text]


def _with_images(text: str, images: list[Path], engine: Engine) -> Prompt:
    """Returns a prompt that begins with its images, unless the text says where they are."""
    if not images:
        return text
    if (mark := engine.image_placeholder) is not None and mark.token not in text:
        text = mark.text * len(images) + text
    return {"prompt": text, "multi_modal_data": {"image": images}}


def _stream(engine: Engine, prompt: Prompt, params: SamplingParams) -> RequestOutput:
    for output in engine.stream(prompt, params):
        print(output.outputs[0].delta_text, end="", flush=True)
    print()
    return output


def _record(output: RequestOutput, completion: CompletionOutput) -> dict[str, Any]:
    metrics = output.metrics
    record: dict[str, Any] = {
        "prompt": output.prompt,
        "index": completion.index,
        "text": completion.text,
        "token_ids": completion.token_ids,
        "finish_reason": completion.finish_reason,
        "stop_reason": completion.stop_reason,
        "error": completion.error,
        "num_prompt_tokens": metrics.num_prompt_tokens,
        "num_generation_tokens": len(completion.token_ids),
        "ttft_s": metrics.ttft,
        "e2e_s": metrics.e2e,
    }
    if completion.logprobs is not None:
        record["logprobs"] = [_token_record(entry) for entry in completion.logprobs]
    return record


def _token_record(entry: TokenLogprobs) -> dict[str, Any]:
    """Returns the token's own record, with the most likely tokens under "top"."""
    each = [
        {"token_id": token_id, "token": found.decoded_token, "logprob": found.logprob, "rank": found.rank}
        for token_id, found in entry.items()
    ]
    return {**each[0], "top": sorted(each, key=lambda item: item["rank"])}


def print_speed(outputs: list[RequestOutput]) -> None:
    """Prints tokens and tokens per second on standard error."""
    start = min(output.metrics.arrival_time for output in outputs)
    seconds = max(output.metrics.finish_time for output in outputs) - start
    tokens_in = sum(output.metrics.num_prompt_tokens for output in outputs)
    tokens_out = sum(output.metrics.num_generation_tokens for output in outputs)
    rate = tokens_out / seconds if seconds > 0 else 0.0
    print(f"[{tokens_in} tokens in, {tokens_out} out, {seconds:.2f} s, {rate:.1f} tok/s]", file=sys.stderr)
