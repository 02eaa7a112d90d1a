"""The Python API of the engine: prompts in, RequestOutputs out. It handles parsing and text; C++ does the work."""

from __future__ import annotations

import numbers
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any

from lynx_rt.engine.async_stream import AsyncStream, AsyncStreams
from lynx_rt.engine.chat_results import fill_in, response_format
from lynx_rt.engine.driver import Driver
from lynx_rt.engine.generation_config import load_generation_config
from lynx_rt.engine.images import ImageInputs, as_prompt
from lynx_rt.engine.input_processor import InputProcessor, Params, ParamsPerPrompt
from lynx_rt.engine.options import check_options, native_options
from lynx_rt.engine.outputs import RequestOutput, sum_prompt_logprobs
from lynx_rt.engine.progress import LoadProgress, ProgressBar, warn_of_model
from lynx_rt.engine.request import Request
from lynx_rt.engine.state import EngineState
from lynx_rt.engine.stream import TokenStream
from lynx_rt.engine.text_methods import Conversation, EngineText
from lynx_rt.errors import ValidationError, shown
from lynx_rt.text.prompts import Prompt
from lynx_rt.text.tokenizer import Tokenizer


class Engine(EngineText, EngineState):
    """A model, ready to generate. Thread-safe; runs inside this process and starts no others.
    A program may end without close(). In the child of a fork(), its calls raise EngineClosedError; a new Engine works there.

    model: a Hugging Face model folder, a file in GGUF, or the name of a model on the Hub ("org/name", see lynx_rt.engine.hub).
    load_format: "auto", "safetensors"; "dummy" = made up from config.json alone.  skip_tokenizer_init: token ids only.
    tokenizer: folder, file or object, see Tokenizer; None = the model's.  chat_template: text or path; None = the tokenizer's.
    tool_parser, reasoning_parser: how `chat` finds tool calls and reasoning in what the model writes: "auto" = by the
    model's files, None or "none" = not at all, or a name ("hermes", "think", ...; see lynx_rt.text.response).
    generation_config: where default sampling comes from: "auto" = the model folder, a folder or file, None or "vllm" = no file.
    device: "auto" (CUDA where there is one, for bfloat16), "cpu", "cuda", "cuda:N".
    dtype: "auto" (the checkpoint's), "float32", "bfloat16", "float16".  seed: for requests without one.
    quantization: None or "none" = weights stay as the file has them; "int8" = 16-bit linear layers and experts become int8 at
    load; "int4" = 16-bit experts int4; "dequantize" = what the file has quantised is decoded to 16 bit.
    activations: how they enter products with weights that stay quantised, on the CPU: "int8" (FP8: `dtype`); "bfloat16" = `dtype`,
    which is slower and gives the bits of quantization="dequantize".
    quantization_cache: a folder that keeps quantised and repacked weights for the next load; None = nothing is kept.
    expert_file: made by `lynx-rt pack` with the same quantization, or, where it is None, in quantization_cache. CPU only.
    expert_memory: memory for experts; the others are read when a step needs them, from expert_file or, on a device, host memory, with the
    same results: bytes (8_000_000_000, "8GB"), a share (0.25, "25%"), "auto" = half of what is free; None = all stay (docs/tiers.md).
    memory: one number for weights, KV cache, experts and all else, in the same forms: a share is one of the free memory, "auto" 80 % of it.
    expert_policy: which experts stay: "lfu:decay=0.99" = those used the most lately; "score", "static:file=PATH", ...; "lfu:miss=low", ..,
    "hi_lo" = the others are computed from int4 copies, which changes results and refuses exact requests: docs/tiers.md.
    expert_prefetch: "next_router:n=N" = the next layer's router says which N per row are read ahead; "none"; "pregated" = and used.
    io_timeout_s: seconds of waiting for a read of experts after which a step ends its requests with an error; None = it waits.
    max_model_len: tokens of prompt and output; None = the model's, cut to what the KV cache holds.
    max_num_seqs: running requests.  max_num_batched_tokens: rows of one step.
    max_num_queued_reqs: requests beyond max_num_seqs that may wait before QueueFullError; None = no limit.
    max_num_queued_tokens: the same of prompt tokens of waiting requests; a request of any length may wait alone.
    admission: which waiting request runs next: "first_come", or "affinity:skips=128" = the one that is most like those that run.
    enable_mixed_chunk: prompts may share a step with decoding; False = expert_selection acts on every decode row.
    block_size: tokens per KV page.  kv_cache_memory_bytes: None = from free memory and max_model_len.
    encoder_cache_memory_bytes: for what the vision tower says of images, whose largest must fit; None = chosen.
    language_model_only: the vision tower is not loaded, and the engine reads text only.
    expert_selection: None, "off" or "topk" = the model's own routing; "lynx", "oea:k0=2", ... = batch-aware, in steps
    that only decode; results then depend on the rest of the batch, except for requests with expert_selection="exact".
    virtual_residents: for research: counts what a cache of so many experts of each layer (below 1 a share) would read, and lets
    selections with the key `resident` see it; 0 = none.  virtual_residency: its policy, as expert_policy.
    num_threads: None = one per core, within affinity and CPU quota.  isa: None = the best; "scalar", "avx2", "avx512", ...
    limit_mm_per_prompt: {"image": N} = images of a prompt at most.  mm_processor_kwargs: {"max_pixels": N} = an image is made smaller to
    have no more pixels, and so no more tokens (docs/vision.md).  allowed_local_media_path: a folder whose files file: URLs may name.
    on_load_progress: called with (bytes done, bytes in all) as weights are loaded; None = a bar on a terminal.
    enable_return_routed_experts: fills CompletionOutput.routed_experts.  record_router_logits: see lynx_rt.research.recording.

    Raises ModelNotFoundError, CheckpointError, UnsupportedModelError, OutOfMemoryError, ValidationError.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        tokenizer: str | os.PathLike[str] | Any | None = None,
        skip_tokenizer_init: bool = False,
        chat_template: str | os.PathLike[str] | None = None,
        tool_parser: str | None = "auto",
        reasoning_parser: str | None = "auto",
        generation_config: str | os.PathLike[str] | None = "auto",
        device: str = "auto",
        load_format: str = "auto",
        dtype: str = "auto",
        quantization: str | None = None,
        quantization_cache: str | os.PathLike[str] | None = None,
        activations: str = "int8",
        expert_file: str | os.PathLike[str] | None = None,
        expert_memory: int | float | str | None = None,
        memory: int | float | str | None = None,
        expert_policy: str = "lfu",
        expert_prefetch: str = "none",
        io_timeout_s: float | None = None,
        max_model_len: int | None = None,
        max_num_seqs: int = 128,
        max_num_batched_tokens: int = 2048,
        max_num_queued_reqs: int | None = None,
        max_num_queued_tokens: int | None = None,
        admission: str = "first_come",
        block_size: int = 16,
        enable_prefix_caching: bool = True,
        enable_mixed_chunk: bool = True,
        kv_cache_memory_bytes: int | None = None,
        encoder_cache_memory_bytes: int | None = None,
        language_model_only: bool = False,
        expert_selection: str | None = None,
        virtual_residents: float = 0,
        virtual_residency: str = "lfu",
        num_threads: int | None = None,
        seed: int = 0,
        isa: str | None = None,
        enable_return_routed_experts: bool = False,
        record_router_logits: bool = False,
        limit_mm_per_prompt: Mapping[str, int] | None = None,
        mm_processor_kwargs: Mapping[str, Any] | None = None,
        allowed_local_media_path: str | os.PathLike[str] | None = None,
        on_load_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        given = locals()
        check_options(Engine.__init__.__annotations__, given)
        from lynx_rt import _C
        from lynx_rt.engine import model_path

        self._path = model_path.resolve(model, load_format)
        # The small files are read first: an error in them must not come after minutes of loading, or leave a cache behind.
        self._tokenizer = None if skip_tokenizer_init else Tokenizer.of(tokenizer, self._path)
        self._generation_config = load_generation_config(self._path, generation_config)
        self._response_format = response_format(self._tokenizer, chat_template, tool_parser, reasoning_parser)
        core = _C.Engine(
            os.fspath(self._path),
            **native_options(Engine.__init__.__annotations__, given),
            on_load_progress=on_load_progress or LoadProgress(),
        )
        try:
            self._core = core
            self._driver = Driver(core)
            self._streams = AsyncStreams(self._driver)
            self._info: dict[str, Any] = warn_of_model(self._path, core.model_info())
            images = ImageInputs(
                self._path, self._info, limit_mm_per_prompt, mm_processor_kwargs, allowed_local_media_path
            )
            self._inputs = InputProcessor(
                self._tokenizer, self._generation_config, chat_template, self._response_format, self._info, images
            )
        except BaseException:
            core.close()
            raise
        self._unfinished: set[Request] = set()  # requests of add_request()
        self._outbox: dict[str, Request] = {}  # requests of add_request() that changed since the last step()

    # Generation

    def generate(
        self,
        prompts: Prompt | Iterable[Prompt],
        sampling_params: ParamsPerPrompt = None,
        *,
        add_special_tokens: bool | None = None,
        use_tqdm: bool | None = None,
        timeout: float | None = None,
    ) -> list[RequestOutput]:
        """Completes every prompt; returns a list in the order of the prompts, also for a single one.

        prompts: text, token ids, a conversation (a list of {"role", "content"}), or several of these. As a dict:
        {"prompt": text}, {"prompt_token_ids": ids} (also with the "prompt" to report), or {"messages": conversation} with
        the arguments of `chat`. A text or ids may have images beside them, "multi_modal_data": {"image": one or several}, and one
        placeholder for each; "mm_processor_kwargs": {"max_pixels": N} for this prompt.
        sampling_params: one for all or one per prompt, as SamplingParams or dict; None = the model's generation config.
        add_special_tokens: whether the tokenizer adds its special tokens to a text (mostly a start token); None = to all but
        conversations, whose template adds them. A start token that the text has already is never doubled.
        use_tqdm: None = a progress bar for several prompts on a terminal.
        timeout: seconds for the whole call; a request that is not finished by then comes back as it is, with
        finish_reason "abort".
        Raises ValidationError before anything is queued, QueueFullError with nothing left behind. Ctrl-C ends the
        requests of this call only.
        """
        parsed = self._parse(prompts, add_special_tokens=add_special_tokens)
        return self._run(self._inputs.requests(parsed, sampling_params), use_tqdm, timeout)

    def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        sampling_params: ParamsPerPrompt = None,
        *,
        chat_template: str | os.PathLike[str] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool | str = False,
        tools: Sequence[Any] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        mm_processor_kwargs: Mapping[str, Any] | None = None,
        use_tqdm: bool | None = None,
        timeout: float | None = None,
    ) -> list[RequestOutput]:
        """Answers one conversation (a list of {"role", "content"}) or several; otherwise as `generate`.

        messages: as OpenAI's API has them, as dicts, pydantic models or dataclasses; images as parts, see docs/vision.md.
        chat_template: text, path or name; None = the engine's.  chat_template_kwargs: further variables for it.
        continue_final_message: go on with the last message (True, or the name of its field), with
        add_generation_prompt=False.
        tools: JSON schemas, or Python functions with type hints and a docstring.
        mm_processor_kwargs: {"max_pixels": N} = images of these conversations are made smaller.
        Each completion has the model's answer as `content`, `reasoning` and `tool_calls`; its `text` is all of it as
        written. Without `tools`, calls stay in the content. Reasoning that the template begins is free of structured_outputs.
        """
        from lynx_rt.text.chat import as_conversations
        from lynx_rt.text.chat_messages import plain_tools

        options = {
            "chat_template": chat_template,
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": continue_final_message,
            "tools": tools,
            "chat_template_kwargs": chat_template_kwargs,
            "mm_processor_kwargs": mm_processor_kwargs,
        }
        each = [{"messages": conversation, **options} for conversation in as_conversations(messages)]
        parsed = self._parse(each if len(each) > 1 else each[0], name="conversation")
        requests = self._inputs.requests(parsed, sampling_params, is_chat=True)
        outputs = self._run(requests, use_tqdm, timeout)
        for request, output in zip(requests, outputs, strict=True):
            fill_in(output, request.params, self._response_format, self.get_tokenizer(), plain_tools(tools))
        return outputs

    def stream(
        self,
        prompt: Prompt,
        sampling_params: Params | None = None,
        *,
        request_id: str | None = None,
        add_special_tokens: bool | None = None,
    ) -> TokenStream:
        """Returns an iterator over the growing output of one prompt or conversation. Leaving it early aborts the request."""
        request = self._make_one(prompt, sampling_params, request_id, add_special_tokens)
        stream = TokenStream(request, self._wait_for_change, self._driver.abort)
        self._driver.add([request])
        return stream

    async def agenerate(
        self,
        prompt: Prompt,
        sampling_params: Params | None = None,
        *,
        request_id: str | None = None,
        add_special_tokens: bool | None = None,
    ) -> AsyncIterator[RequestOutput]:
        """`stream` for asyncio. A cancelled task or an iterator that is closed early aborts the request."""
        request = self._make_one(prompt, sampling_params, request_id, add_special_tokens)
        stream = self._streams.open(request, as_deltas=False)
        try:
            while True:
                output = await stream.next_output()
                yield output
                if output.finished:
                    return
        finally:
            stream.close()

    def open_streams(self, requests: Sequence[Request]) -> list[AsyncStream]:
        """Queues requests of `inputs` together, whose deltas the running event loop then reads. Waits for nothing."""
        return self._streams.open_together(requests)

    def add_request(
        self,
        prompt: Prompt,
        sampling_params: Params | None = None,
        *,
        request_id: str | None = None,
        add_special_tokens: bool | None = None,
    ) -> str:
        """Queues a request for a loop around `step()` and returns its id."""
        request = self._make_one(prompt, sampling_params, request_id, add_special_tokens)
        request.notify = self._post
        self._unfinished.add(request)
        try:
            self._driver.add([request])
        except BaseException:
            with self._driver.locked():
                self._unfinished.discard(request)
                self._outbox.pop(request.request_id, None)
            raise
        return request.request_id

    def step(self) -> list[RequestOutput]:
        """Runs one step; returns what is new for the requests of `add_request`."""
        with self._driver.locked():
            pending = bool(self._outbox)
        if not pending:
            self._driver.step_once()
        with self._driver.locked():
            changed, self._outbox = self._outbox, {}
            return [request.take_output() for request in changed.values()]

    def has_unfinished_requests(self) -> bool:
        """Whether `step()` has more to return for the requests of `add_request`."""
        self._driver.check_open()
        return bool(self._outbox or self._unfinished)

    def abort(self, request_id: str | Iterable[str]) -> int:
        """Ends requests by id and returns how many were running; whoever waits for one gets finish_reason "abort"."""
        try:
            ids: list[Any] = [request_id] if isinstance(request_id, str) else list(request_id)
        except TypeError:
            ids = [request_id]
        if odd := [name for name in ids if not isinstance(name, str)]:
            raise ValidationError(f"request_id must be a string or a list of them, got {shown(odd[0])}", "request_id")
        found = [request for name in ids if (request := self._driver.find(name)) is not None]
        return self._driver.abort(found)

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Prompt]) -> list[float]:
        """Returns the sum of (natural) log probabilities of each completion after its prompt; both are tokenized separately."""
        heads = self._parse(prompts)
        tails = self._parse(completions, name="completion", add_special_tokens=False)
        if len(heads) != len(tails):
            raise ValidationError(f"{len(heads)} prompts but {len(tails)} completions", "completions")
        joined = [as_prompt(head) for head in heads]
        for whole, tail in zip(joined, tails, strict=True):
            whole["prompt_token_ids"] += tail.token_ids
        outputs = self.generate(joined, {"prompt_logprobs": 0, "max_tokens": 1, "detokenize": False}, use_tqdm=False)
        return [sum_prompt_logprobs(out, len(head.token_ids)) for out, head in zip(outputs, heads, strict=True)]

    # Closing

    @property
    def is_closed(self) -> bool:
        """Whether calls raise EngineClosedError: after `close()`, and in the child of a fork()."""
        return self._driver.closed

    def on_step(self, hook: Callable[[], None] | None) -> None:
        """Has hook() called after every step, by the thread that made it, before the next one; None ends that. It must not raise."""
        self._driver.step_hook = hook

    @property
    def stalled_seconds(self) -> float:
        """Time since a step ended, while requests are in flight, else 0. Never waits, also where a step hangs."""
        return self._driver.stalled_seconds()

    def close(self) -> None:
        """Frees all memory. Later calls, and calls that are waiting, raise EngineClosedError. Idempotent."""
        self._driver.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        if self.is_closed:
            return f"Engine({str(self._path)!r}, closed)"
        info = self._info
        return (
            f"Engine({str(self._path)!r}, {info['model_type']}, dtype={info['dtype']!r}, device={info['device']!r}, "
            f"expert_selection={self.expert_selection!r})"
        )

    # Internals

    def _make_one(
        self,
        prompt: Prompt,
        sampling_params: Params | None,
        request_id: str | None,
        add_special_tokens: bool | None = None,
    ) -> Request:
        parsed = self._parse(prompt, add_special_tokens=add_special_tokens)
        return self._inputs.request(parsed, sampling_params, request_id)

    def _run(self, requests: list[Request], use_tqdm: bool | None, timeout: float | None) -> list[RequestOutput]:
        if not isinstance(use_tqdm, (bool, type(None))):
            raise ValidationError(f"use_tqdm must be True, False or None, got {shown(use_tqdm)}", "use_tqdm")
        if timeout is not None and (
            isinstance(timeout, bool) or not isinstance(timeout, numbers.Real) or timeout != timeout
        ):
            raise ValidationError(f"timeout must be a number of seconds or None, got {shown(timeout)}", "timeout")
        deadline = None if timeout is None else time.monotonic() + float(min(timeout, threading.TIMEOUT_MAX))
        waiting = set(requests)

        def note(request: Request) -> None:
            if request.finished:
                waiting.discard(request)

        for request in requests:
            request.notify = note
        with ProgressBar(requests, use_tqdm) as bar:

            def ready() -> bool:
                bar.show(len(requests) - len(waiting))
                return not waiting

            try:
                self._driver.add(requests)
                self._driver.run_until(ready, deadline)
            finally:
                self._driver.abort(requests)
        return [request.take_output() for request in requests]

    def _wait_for_change(self, request: Request) -> RequestOutput:
        while True:
            self._driver.run_until(lambda: request.changed)
            if (output := self._take_change(request)) is not None:
                return output

    def _take_change(self, request: Request) -> RequestOutput | None:
        """Returns what is new of a request; None if nothing is. Raises what made the request fail."""
        with self._driver.locked():
            if request.error is not None:
                raise request.error
            return request.take_output() if request.changed else None

    def _post(self, request: Request) -> None:
        self._outbox[request.request_id] = request
        if request.finished:
            self._unfinished.discard(request)
