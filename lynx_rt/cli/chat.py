"""`lynx-rt chat`: a conversation with a model, on a terminal or through a pipe.

Every line is a message; a backslash at its end goes on in the next line. Ctrl-C ends an answer, Ctrl-D or /exit the conversation.

commands:
  /reset         forget the conversation, but not the system message
  /system TEXT   set the system message and forget the conversation; without TEXT there is none
  /image FILE    an image for the next message; several are several commands
  /policy NAME   expert selection from now on: topk, lynx, oea:k0=2, ...
  /show-prompt   print what the model was last given, after its chat template
  /exit          leave; also /quit
  //TEXT         a message that begins with a slash

A model without a chat template completes every line by itself, as `lynx-rt generate` does.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lynx_rt.cli.generate import add_length, check_not_a_prompt, print_speed
from lynx_rt.cli.options import (
    add_engine_options,
    add_image_options,
    add_model,
    engine_options,
    image_files,
    model_folder,
)
from lynx_rt.cli.sampling import add_sampling_options, sampling_fields, unescape
from lynx_rt.errors import LynxError
from lynx_rt.text.text_file import decode_text

if TYPE_CHECKING:
    from lynx_rt import Engine, RequestOutput, SamplingParams


def add_command(commands: Any) -> None:
    parser = commands.add_parser(
        "chat", help="talk to a model", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model(parser)
    parser.add_argument("-p", "--prompt", help="the first message")
    add_image_options(parser, "for the first message")
    parser.add_argument("--system", metavar="TEXT", help="the system message")
    parser.add_argument("--chat-template", metavar="FILE", help="a Jinja template (default: the model's)")
    parser.add_argument(
        "--show-prompt", action="store_true", help="print each prompt on standard error before its answer"
    )
    parser.add_argument("--selection", default="topk", help="expert selection: topk (default), lynx, oea:k0=2, ...")
    add_sampling_options(parser, several=False)
    add_engine_options(parser)
    add_length(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    given = sampling_fields(args)
    check_not_a_prompt(args)
    images = image_files(args)
    folder = model_folder(args)
    from lynx_rt import Engine, SamplingParams

    # There is one request at a time, which may have the whole KV cache.
    options = {"max_model_len": args.max_model_len, "max_num_seqs": 1, **engine_options(args)}
    options["mm_processor_kwargs"] = args.mm_processor_kwargs
    with Engine(folder, expert_selection=args.selection, chat_template=args.chat_template, **options) as engine:
        params = engine.get_default_sampling_params()
        if params.max_tokens == SamplingParams().max_tokens:
            given = {"max_tokens": None, **given}  # without a limit, the model ends its answer
        return _Session(args, engine, params.clone(**given), images).talk()


class _Session:
    """One conversation, and the commands that act on it."""

    def __init__(self, args: argparse.Namespace, engine: Engine, params: SamplingParams, images: list[Path]) -> None:
        self._engine = engine
        self._params = params
        self._show_prompts = args.show_prompt
        self._escape = args.escape
        self._first = args.prompt
        self._has_template = args.chat_template is not None or engine.get_tokenizer().chat_template is not None
        self._system: str | None = None
        self._messages: list[dict[str, Any]] = []
        self._images: list[Path] = images  # of the next message
        self._prompt = ""  # the last prompt, as the chat template rendered it
        self._failed = False
        if args.system is not None:
            self._set_system(args.system)

    def talk(self) -> int:
        """Talks until the end of the input or /exit; returns the exit code."""
        if not self._has_template:
            _note("this model has no chat template: every line is completed by itself (--chat-template FILE gives one)")
        elif sys.stdin is not None and sys.stdin.isatty():
            _note("/exit or Ctrl-D leaves, Ctrl-C ends an answer, `lynx-rt chat --help` lists the commands")
        for line in _lines(self._first):
            text = unescape(line) if self._escape else line
            try:
                if text.startswith("/") and not text.startswith("//"):
                    if not self._command(text):
                        break
                elif text.strip():
                    self._answer(text.removeprefix("/") if text.startswith("//") else text)
            except KeyboardInterrupt:  # it came just before or after an answer
                continue
            except LynxError as error:
                self._failed = True
                sys.stdout.flush()
                print(f"lynx-rt: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1 if self._failed else 0

    def _command(self, line: str) -> bool:
        """Runs a line that begins with "/"; returns whether the conversation goes on."""
        name, _, rest = line.strip().partition(" ")
        rest = rest.strip()
        if name in ("/exit", "/quit", "/bye"):
            return False
        if name in ("/reset", "/clear"):
            self._messages.clear()
            _note("the conversation is empty")
        elif name == "/system":
            self._set_system(rest)
        elif name == "/image":
            self._add_image(rest)
        elif name == "/policy":
            if rest:
                self._engine.set_expert_selection(rest)
            _note(f"expert selection: {self._engine.expert_selection}")
        elif name == "/show-prompt":
            print(self._prompt)
        elif name in ("/help", "/?"):
            print((__doc__ or "").partition("\n\n")[2].strip())
        else:
            raise LynxError(f"no command {name}; /help lists them, and a message may begin with //")
        return True

    def _add_image(self, path: str) -> None:
        file = Path(path).expanduser()
        if not file.is_file():
            raise LynxError(f"/image: {path!r} is no file")
        self._images.append(file)
        _note(f"{len(self._images)} image(s) for the next message")

    def _set_system(self, text: str) -> None:
        if text and not self._has_template:
            raise LynxError("a system message needs a chat template, and this model has none")
        self._system = text or None
        self._messages.clear()

    def _answer(self, text: str) -> None:
        system = [{"role": "system", "content": self._system}] if self._system is not None else []
        question: dict[str, Any] = {"role": "user", "content": text}
        images, self._images = self._images, []
        if images:
            if not self._has_template:
                raise LynxError("an image needs a chat template, and this model has none")
            parts = [{"type": "image", "image": image} for image in images]
            question["content"] = [*parts, {"type": "text", "text": text}]
        prompt: dict[str, Any] = {"prompt": text}
        if self._has_template:
            prompt = self._engine.render_chat([*system, *self._messages, question])
        self._prompt = prompt["prompt"]
        if self._show_prompts:
            print(self._prompt, file=sys.stderr)
        output, answer = None, ""
        with self._engine.stream(prompt, self._params) as stream, contextlib.suppress(KeyboardInterrupt):
            for output in stream:
                answer = output.outputs[0].text
                print(output.outputs[0].delta_text, end="", flush=True)
        print(flush=True)
        if output is not None and output.outputs[0].error:
            raise LynxError(output.outputs[0].error)
        if answer:  # an answer that Ctrl-C cut short stays in the conversation
            self._messages += [question, {"role": "assistant", "content": answer.strip()}]
        if output is not None and output.finished:
            self._note_end(output)

    def _note_end(self, output: RequestOutput) -> None:
        if output.outputs[0].finish_reason == "length":
            _note("cut at --max-tokens, or at the end of the context")
        if sys.stderr.isatty():
            print_speed([output])


def _note(text: str) -> None:
    sys.stdout.flush()
    print(f"[{text}]", file=sys.stderr, flush=True)


def _lines(first: str | None) -> Iterator[str]:
    """Yields the messages: the first one, then lines of standard input. A backslash at the end joins a line to the next."""
    if first is not None:
        yield first
    message = ""
    for line in _terminal_lines() if sys.stdin is not None and sys.stdin.isatty() else _piped_lines():
        if line.endswith("\\"):
            message += line[:-1] + "\n"
        else:
            yield message + line
            message = ""
    if message:
        yield message.removesuffix("\n")


def _terminal_lines() -> Iterator[str]:
    with contextlib.suppress(ImportError):
        importlib.import_module("readline")  # input() gets line editing and history from it
    while True:
        try:
            yield input("> ")
        except KeyboardInterrupt:
            print()
            _note("/exit or Ctrl-D leaves")
        except EOFError:
            print()
            return


def _piped_lines() -> Iterator[str]:
    if sys.stdin is None:
        return
    for count, line in enumerate(getattr(sys.stdin, "buffer", sys.stdin), 1):
        text = line if isinstance(line, str) else decode_text(line, f"line {count} of standard input", "prompt")
        yield text.removesuffix("\n")
