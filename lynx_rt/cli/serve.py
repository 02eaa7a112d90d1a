"""`lynx-rt serve`: answers OpenAI's API over HTTP.

Every option can also be set by a variable, LYNX_RT_SERVE_MAX_NUM_SEQS=64, or in a TOML file, max_num_seqs = 64 (--config
FILE). The command line goes first, then the variables, then the file. docs/serving.md explains every option.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lynx_rt.cli.options import (
    add_engine_options,
    add_model,
    engine_options,
    integer,
    json_object,
    model_folder,
    non_negative_int,
    number,
    positive_int,
)
from lynx_rt.errors import LynxError

_VARIABLE = "LYNX_RT_SERVE_"
_SWITCH = {"auto": None, "on": True, "off": False}
_NOT_SETTINGS = ("help", "config", "verbose")


def add_command(commands: Any) -> None:
    parser = commands.add_parser(
        "serve",
        help="serve a model over HTTP, by OpenAI's API",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model(parser)
    parser.add_argument("--config", metavar="FILE", help="a TOML file with options")
    _add_http(parser.add_argument_group("HTTP"))
    _add_limits(parser.add_argument_group("limits"))
    _add_generation(parser.add_argument_group("generation"))
    _add_operation(parser.add_argument_group("operation"))
    add_engine_options(parser)
    parser.set_defaults(run=run)


def _add_http(group: Any) -> None:
    group.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    group.add_argument("--port", type=_port, default=8000, help="0 = any free one (default: 8000)")
    group.add_argument("--uds", metavar="PATH", help="a Unix socket instead of host and port")
    group.add_argument("--root-path", default="", metavar="PREFIX", help="path prefix that a proxy in front removes")
    group.add_argument(
        "--api-key", action="append", metavar="KEY", help="a key that clients must send; may be repeated"
    )
    group.add_argument("--api-key-file", metavar="FILE", help="a file with one key per line")
    group.add_argument(
        "--allowed-origin", action="append", metavar="ORIGIN", help="CORS: an origin whose pages may call"
    )
    group.add_argument("--ssl-keyfile", metavar="FILE", help="TLS: the private key")
    group.add_argument("--ssl-certfile", metavar="FILE", help="TLS: the certificate")
    group.add_argument(
        "--allowed-media-domains",
        action="append",
        metavar="HOST",
        help="a host that images are fetched from: example.com, *.example.com, * = any public one; may be repeated",
    )
    group.add_argument("--access-log", action="store_true", help="log every request")


def _add_limits(group: Any) -> None:
    group.add_argument("--max-num-seqs", type=positive_int, default=32, help="completions that run (default: 32)")
    group.add_argument(
        "--max-num-queued-reqs", type=positive_int, metavar="N", help="completions that wait (default: 4 per place)"
    )
    group.add_argument(
        "--max-num-queued-tokens", type=positive_int, metavar="N", help="prompt tokens that wait (default: no limit)"
    )
    group.add_argument(
        "--max-num-batched-tokens", type=positive_int, metavar="N", help="rows of a step (default: 2048)"
    )
    group.add_argument("--max-body-bytes", type=positive_int, default=32 << 20, help="of a request (default: 32 MiB)")
    group.add_argument(
        "--max-media-bytes",
        type=positive_int,
        default=32 << 20,
        help="of the fetched images of a request (default: 32 MiB)",
    )
    group.add_argument(
        "--media-timeout", type=_seconds, default=5.0, metavar="S", help="seconds to fetch images in (default: 5)"
    )
    group.add_argument("--max-n", type=positive_int, default=128, help="answers per prompt (default: 128)")
    group.add_argument("--max-logprobs", type=positive_int, default=20, help="per token (default: 20)")
    group.add_argument("--request-timeout", type=_seconds, metavar="S", help="seconds that a request may take")
    group.add_argument(
        "--stall-timeout",
        type=_seconds,
        default=60.0,
        metavar="S",
        help="for a client that does not read (default: 60)",
    )


def _add_generation(group: Any) -> None:
    group.add_argument(
        "--served-model-name", action="append", metavar="NAME", help="the model's name in the API; may be repeated"
    )
    group.add_argument("--selection", default="topk", help="expert selection: topk (default), lynx, oea:k0=2, ...")
    group.add_argument(
        "--batch-isolation",
        choices=("none", "key", "group"),
        default="none",
        help="whose requests expert selection may mix: all, those of one API key, those of one isolation_group",
    )
    group.add_argument("--max-model-len", type=positive_int, help="tokens of prompt and output (default: the model's)")
    group.add_argument("--no-prefix-caching", action="store_true", help="prompts share no KV cache")
    group.add_argument("--no-mixed-chunk", action="store_true", help="prompts get steps of their own")
    group.add_argument("--tokenizer", metavar="PATH", help="folder or file of a tokenizer (default: the model's)")
    group.add_argument("--chat-template", metavar="FILE", help="a Jinja template (default: the model's)")
    group.add_argument("--trust-request-chat-template", action="store_true", help="requests may bring a chat template")
    group.add_argument(
        "--default-chat-template-kwargs",
        type=json_object,
        metavar="JSON",
        default={},
        help="variables for the template",
    )
    group.add_argument(
        "--limit-mm-per-prompt",
        type=json_object,
        metavar="JSON",
        help="images of a prompt: '{\"image\": 4}' (default: 999)",
    )
    group.add_argument(
        "--mm-processor-kwargs",
        type=json_object,
        metavar="JSON",
        help="makes images smaller: '{\"max_pixels\": 262144}'",
    )
    group.add_argument(
        "--encoder-cache-memory-bytes",
        type=positive_int,
        metavar="N",
        help="memory for what the vision tower says of images (default: chosen)",
    )
    group.add_argument("--language-model-only", action="store_true", help="load no vision tower, and read text only")
    group.add_argument("--allowed-local-media-path", metavar="DIR", help="a folder whose files file: URLs may name")
    group.add_argument("--tool-parser", default="auto", help="how tool calls are written (default: auto)")
    group.add_argument("--reasoning-parser", default="auto", help="how reasoning is written (default: auto)")
    group.add_argument(
        "--reasoning-field",
        choices=("both", "reasoning", "reasoning_content", "inline"),
        default="both",
        help="the name of the reasoning in messages; inline = it stays in the content",
    )
    group.add_argument(
        "--thinking-token-budget",
        type=non_negative_int,
        metavar="N",
        help="tokens of reasoning after which its end is forced, for requests without their own (default: no limit)",
    )
    group.add_argument("--seed", type=integer, default=0, help="for requests without one (default: 0)")


def _add_operation(group: Any) -> None:
    group.add_argument(
        "--shutdown-timeout", type=_seconds, default=30.0, metavar="S", help="for running requests (default: 30)"
    )
    group.add_argument(
        "--watchdog",
        type=_seconds,
        default=60.0,
        metavar="S",
        help="/health fails after a step of S seconds (default: 60)",
    )
    group.add_argument(
        "--keep-alive", type=_seconds, default=15.0, metavar="S", help="comment lines in silent streams (default: 15)"
    )
    group.add_argument(
        "--metrics-per-layer", choices=("auto", "on", "off"), default="auto", help="series for each layer"
    )
    group.add_argument("--no-page", action="store_true", help="no page for browsers at /")
    group.add_argument(
        "--expert-counts",
        choices=("auto", "on", "off"),
        default="auto",
        help="whether clients see how often each expert is read; auto = where all clients are one party",
    )
    group.add_argument("--otlp-traces-endpoint", metavar="URL", help="where spans go")


def run(args: argparse.Namespace) -> int:
    _apply_config(args)
    try:
        from lynx_rt.server.lifecycle import Server
    except ModuleNotFoundError as error:
        raise LynxError(f'the server needs the package {error.name}: pip install "lynx_rt[serve]"') from None
    from lynx_rt.server.settings import Settings

    folder = (
        args.model if args.revision is None else model_folder(args)
    )  # else found, and downloaded, behind the open port
    names = args.served_model_name or [args.model if not Path(args.model).exists() else Path(args.model).resolve().name]
    engine = {
        **engine_options(args),
        "max_num_seqs": args.max_num_seqs,
        "max_model_len": args.max_model_len,
        "max_num_queued_tokens": args.max_num_queued_tokens,
        "enable_prefix_caching": not args.no_prefix_caching,
        "enable_mixed_chunk": not args.no_mixed_chunk and args.batch_isolation == "none",
        "expert_selection": args.selection,
        "tokenizer": args.tokenizer,
        "chat_template": args.chat_template,
        "tool_parser": args.tool_parser,
        "reasoning_parser": args.reasoning_parser,
        "seed": args.seed,
        "limit_mm_per_prompt": args.limit_mm_per_prompt,
        "mm_processor_kwargs": args.mm_processor_kwargs,
        "allowed_local_media_path": args.allowed_local_media_path,
        "encoder_cache_memory_bytes": args.encoder_cache_memory_bytes,
        "language_model_only": args.language_model_only,
    }
    if args.max_num_batched_tokens is not None:
        engine["max_num_batched_tokens"] = args.max_num_batched_tokens
    settings = Settings(
        model=folder,
        served_model_names=tuple(names),
        host=args.host,
        port=args.port,
        uds=args.uds,
        root_path=args.root_path,
        ssl_keyfile=args.ssl_keyfile,
        ssl_certfile=args.ssl_certfile,
        api_keys=tuple(args.api_key or ()) + _keys(args.api_key_file),
        allowed_origins=tuple(args.allowed_origin or ()),
        access_log=args.access_log,
        max_body_bytes=args.max_body_bytes,
        allowed_media_domains=tuple(args.allowed_media_domains or ()),
        media_timeout=args.media_timeout,
        max_media_bytes=args.max_media_bytes,
        max_num_queued_reqs=args.max_num_queued_reqs,
        max_n=args.max_n,
        max_logprobs=args.max_logprobs,
        request_timeout=args.request_timeout,
        stall_timeout=args.stall_timeout,
        keep_alive_seconds=args.keep_alive,
        shutdown_timeout=args.shutdown_timeout,
        watchdog_seconds=args.watchdog,
        trust_request_chat_template=args.trust_request_chat_template,
        default_chat_template_kwargs=args.default_chat_template_kwargs,
        reasoning_field=args.reasoning_field,
        thinking_token_budget=args.thinking_token_budget,
        batch_isolation=args.batch_isolation,
        page=not args.no_page,
        expert_counts=_SWITCH[args.expert_counts],
        metrics_per_layer=_SWITCH[args.metrics_per_layer],
        otlp_traces_endpoint=args.otlp_traces_endpoint,
        engine=engine,
    )
    return Server(settings).run()


def _apply_config(args: argparse.Namespace) -> None:
    """Sets options that the command line leaves out from variables and the file of --config. Raises LynxError naming one."""
    parser = args.parser
    actions = {action.dest: action for action in parser._actions if action.dest not in _NOT_SETTINGS}
    given = _given_options(parser, args)
    variables = {
        name.removeprefix(_VARIABLE).lower(): value for name, value in os.environ.items() if name.startswith(_VARIABLE)
    }
    config = args.config or variables.pop("config", None)
    sources: list[tuple[str, Mapping[str, Any]]] = [(f"variable {_VARIABLE}%s", variables)]
    if config:
        sources.append((f"{config}: %s", _read_toml(config)))
    for where, values in sources:
        for name, value in values.items():
            dest = name.replace("-", "_")
            place = where % (name.upper() if values is variables else name)
            if dest not in actions:
                raise LynxError(f"{place}: there is no such option of `lynx-rt serve`", name)
            if dest in given:
                continue
            setattr(args, dest, _converted(actions[dest], value, place))
            given.add(dest)


def _given_options(parser: Any, args: argparse.Namespace) -> set[str]:
    """Returns the options that the command line sets, also to their defaults."""
    names = {word.partition("=")[0] for word in shlex.split(args.command_line)}
    given = {action.dest for action in parser._actions if names & set(action.option_strings)}
    return given | ({"model"} if args.model != parser.get_default("model") else set())


def _converted(action: argparse.Action, value: Any, place: str) -> Any:
    """Returns the value that the option has for a text, or for a value of TOML."""
    if isinstance(action, argparse._StoreTrueAction):
        text = str(value).lower()
        if text not in ("true", "false", "1", "0", "yes", "no"):
            raise LynxError(f"{place}: expected true or false, got {value!r}")
        return text in ("true", "1", "yes")
    several = isinstance(action, argparse._AppendAction)
    items = value if isinstance(value, list) else str(value).split(",") if several else [value]
    if isinstance(value, list) and not several:
        raise LynxError(f"{place}: expected one value, got {value!r}")
    convert: Any = action.type or str
    try:
        texts = [json.dumps(item) if isinstance(item, (dict, bool)) else str(item) for item in items]
        converted = [convert(text) for text in texts]
    except (argparse.ArgumentTypeError, ValueError, TypeError) as error:
        raise LynxError(f"{place}: {error}") from None
    if action.choices is not None and converted[0] not in action.choices:
        raise LynxError(f"{place}: expected one of {', '.join(map(str, action.choices))}, got {converted[0]!r}")
    return converted if several else converted[0]


def _read_toml(path: str) -> dict[str, Any]:
    toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    try:
        options: dict[str, Any] = toml.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LynxError(f"--config {path}: {error}", "config") from None
    return options


def _keys(path: str | None) -> tuple[str, ...]:
    if path is None:
        return ()
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise LynxError(f"--api-key-file: {error}", "api_key_file") from None
    keys = tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))
    if not keys:
        raise LynxError(f"--api-key-file {path} holds no key", "api_key_file")
    return keys


def _port(text: str) -> int:
    value = integer(text)
    if not 0 <= value <= 65535:
        raise argparse.ArgumentTypeError(f"must be from 0 to 65535, got {value}")
    return value


def _seconds(text: str) -> float:
    value = number(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a positive number of seconds, got {text!r}")
    return value
