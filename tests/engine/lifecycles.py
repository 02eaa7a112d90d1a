"""Runs random lives of requests on one engine, from several threads. Every output must have the bits of the request run alone.

`Cases` are requests with their outputs when run alone. `Lives` runs them on an engine through every call of the API, in threads of its
own, with aborts, timeouts, errors and changes of policy between them.
"""

from __future__ import annotations

import asyncio
import functools
import random
import string
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import tokenizers

from lynx_rt import Engine, QueueFullError, RequestOutput, Tokenizer, ValidationError

VOCAB = 71  # of the tiny model "many"
POLICIES = ["lynx:alpha=8,beta=4,theta=1", "oea:k0=2", None]
Case = tuple[list[int], dict[str, Any]]


def bits(output: RequestOutput, index: int) -> tuple[Any, ...]:
    """Returns what must not depend on other requests. Logprobs are Python floats made from float32, so == compares their bits."""
    out = output.outputs[index]
    return out.token_ids, out.logprobs, out.cumulative_logprob, out.finish_reason, out.stop_reason


def make_case(rng: random.Random, vocab: int) -> Case:
    shared = [(7 * i) % vocab for i in range(40)]  # a prefix that many prompts begin with
    prompt = shared[: rng.randrange(41)] * rng.randrange(2) + [rng.randrange(vocab) for _ in range(rng.randint(1, 12))]
    options: dict[str, Any] = {
        "temperature": 0,
        "max_tokens": rng.randint(1, 10),
        "ignore_eos": True,
        "expert_selection": "exact",
    }
    if rng.random() < 0.6:
        options |= {
            "temperature": rng.choice([0.7, 1.5]),
            "seed": rng.randrange(2**40),
            "top_k": rng.choice([0, 20]),
            "n": rng.randint(1, 3),
        }
    extra: list[dict[str, Any]] = [
        {"logprobs": 2}, {"prompt_logprobs": 1}, {"repetition_penalty": 1.3, "frequency_penalty": 0.4}, {"top_p": 0.8, "min_p": 0.01},
        {"stop_token_ids": list(range(0, vocab, 7)), "min_tokens": rng.randint(0, 1)}, {"logit_bias": {3: 5.0, 4: -100.0}},
        {"max_tokens": rng.randint(20, 40)}, {"allowed_token_ids": [3, 4, 5, 6, 7, 8]},
        {"forced_token_ids": [rng.randrange(vocab) for _ in range(rng.randint(1, 6))], "n": 1},
    ]  # fmt: skip
    # These change the order of events, and never what a request says.
    options |= {"priority": rng.choice([0, 0, 1, -1]), "cache_salt": rng.choice([None, None, "a", "b"])}
    for choice in extra:
        if rng.random() < 0.15:
            options |= choice
    if "forced_token_ids" not in options and rng.random() < 0.15:
        options["structured_outputs"] = {"regex": rng.choice(["([a-f]{2},?)+", "([a-zA-Z]{1,3}0){3,20}"])}
    return prompt, options


@functools.cache
def letters(vocab: int) -> Tokenizer:
    """Returns a tokenizer of `vocab` tokens, all but the first three of one or two characters."""
    chars = string.ascii_letters + string.digits + ",."
    texts = [*chars, *(a + b for a in "abc" for b in "abc,")][: vocab - 3]
    raw = tokenizers.Tokenizer(tokenizers.models.BPE({text: 3 + place for place, text in enumerate(texts)}, []))
    raw.decoder = tokenizers.decoders.ByteLevel()
    return Tokenizer(raw)


class Cases:
    """Requests, and the output of each on an engine of its own (one at a time, no prefix cache, the model's own routing)."""

    def __init__(self, path: str, count: int, seed: int = 0) -> None:
        rng = random.Random(seed)
        self.tokenizer = letters(VOCAB)
        with Engine(
            path, tokenizer=self.tokenizer, max_num_seqs=1, enable_prefix_caching=False, num_threads=1
        ) as alone:
            self.vocab = alone.model_config["vocab_size"]
            self.kv_bytes_per_token = alone.model_config["kv_bytes_per_token"]
            self.cases = [make_case(rng, self.vocab) for _ in range(count)]
            self.alone = [alone.generate([prompt], options)[0] for prompt, options in self.cases]
            self.pairs = [
                ([rng.randrange(self.vocab)] * 5, [rng.randrange(self.vocab) for _ in range(4)]) for _ in range(30)
            ]
            self.scores = [alone.score([head], [tail])[0] for head, tail in self.pairs]

    def check(self, number: int, output: RequestOutput, whole: bool = True) -> None:
        """Compares all of an output, or (whole=False) the part before it was ended from outside."""
        expected = self.alone[number]
        assert len(output.outputs) == len(expected.outputs)
        for index, out in enumerate(output.outputs):
            if whole or out.finish_reason not in (None, "abort"):
                assert bits(output, index) == bits(expected, index), f"case {number}: {self.cases[number]}"
            else:
                told = expected.outputs[index]
                count = len(out.token_ids)
                assert out.token_ids == told.token_ids[:count], f"case {number}: {self.cases[number]}"
                assert out.logprobs == (None if told.logprobs is None else told.logprobs[:count])
        if whole or output.prompt_logprobs:
            assert output.prompt_logprobs == expected.prompt_logprobs


class Lives:
    """`count` lives on an engine, by `threads` threads; `ended` counts their ends by kind."""

    def __init__(self, cases: Cases, engine: Engine, count: int, seed: int, policies: bool, threads: int = 4) -> None:
        self.cases, self.engine, self.seed, self.policies, self.threads = cases, engine, seed, policies, threads
        self.ended: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._left = count
        self._looping = threading.Lock()  # step() returns the outputs of all requests of add_request()

    def run(self) -> Counter[str]:
        with ThreadPoolExecutor(self.threads) as pool:
            for job in [
                pool.submit(self._work, random.Random(f"{self.seed} {thread}")) for thread in range(self.threads)
            ]:
                job.result()
        return self.ended

    def _work(self, rng: random.Random) -> None:
        ways: list[tuple[Callable[[random.Random], None], int]] = [
            (self._generate, 6), (self._time_out, 2), (self._stream, 4), (self._leave_stream, 2), (self._abort_elsewhere, 2),
            (self._async, 4), (self._step_loop, 3), (self._score, 1), (self._errors, 1), (self._policy, int(self.policies)),
        ]  # fmt: skip
        calls, weights = zip(*ways, strict=True)
        while self._left > 0:
            try:
                rng.choices(calls, weights)[0](rng)
            except QueueFullError:
                self._end("refused", 1)
            except BaseException:
                self._left = 0
                raise

    def _end(self, how: str, count: int) -> None:
        with self._lock:
            self.ended[how] += count
            self._left -= count

    def _pick(self, rng: random.Random, most: int) -> tuple[list[int], list[list[int]], list[dict[str, Any]]]:
        numbers = [rng.randrange(len(self.cases.cases)) for _ in range(rng.randint(1, most))]
        return numbers, [self.cases.cases[i][0] for i in numbers], [self.cases.cases[i][1] for i in numbers]

    def _generate(self, rng: random.Random) -> None:
        numbers, prompts, options = self._pick(rng, 16)
        for number, output in zip(numbers, self.engine.generate(prompts, options), strict=True):
            self.cases.check(number, output)
        self._end("generate", len(numbers))

    def _time_out(self, rng: random.Random) -> None:
        numbers, prompts, options = self._pick(rng, 16)
        outputs = self.engine.generate(prompts, options, timeout=rng.random() * 0.02)
        for number, output in zip(numbers, outputs, strict=True):
            self.cases.check(number, output, whole=False)
        self._end("timeout", len(numbers))

    def _stream(self, rng: random.Random) -> None:
        (number,), (prompt,), (options,) = self._pick(rng, 1)
        before = 0
        for output in self.engine.stream(prompt, options):
            self.cases.check(number, output, whole=output.finished)
            count = sum(len(out.token_ids) for out in output.outputs)
            assert count > before
            before = count
        self.cases.check(number, output)
        self._end("stream", 1)

    def _leave_stream(self, rng: random.Random) -> None:
        (number,), (prompt,), (options,) = self._pick(rng, 1)
        leave_after = rng.randrange(5)
        stream = self.engine.stream(prompt, options)
        for count, output in enumerate(stream):
            self.cases.check(number, output, whole=False)
            if count == leave_after:
                break
        if rng.random() < 0.5:
            stream.close()
        self._end("left", 1)

    def _abort_elsewhere(self, rng: random.Random) -> None:
        numbers, prompts, options = self._pick(rng, 3)
        streams = [self.engine.stream(prompt, params) for prompt, params in zip(prompts, options, strict=True)]
        timer = threading.Timer(rng.random() * 0.01, self.engine.abort, [[stream.request_id for stream in streams]])
        timer.start()
        for number, stream in zip(numbers, streams, strict=True):
            for output in stream:
                self.cases.check(number, output, whole=False)
            assert output.finished
        timer.join()
        self._end("aborted", len(numbers))

    def _async(self, rng: random.Random) -> None:
        numbers, prompts, options = self._pick(rng, 12)
        cancelled = [rng.random() < 0.3 for _ in numbers]

        async def read(number: int, prompt: list[int], params: dict[str, Any], leave: bool) -> None:
            async for output in self.engine.agenerate(prompt, params):
                self.cases.check(number, output, whole=output.finished)
                if leave:
                    break

        async def main() -> None:
            tasks = [asyncio.create_task(read(*job)) for job in zip(numbers, prompts, options, cancelled, strict=True)]
            await asyncio.sleep(rng.random() * 0.005)
            for task in tasks:
                if rng.random() < 0.2:
                    task.cancel()
            for result in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(result, Exception) and not isinstance(result, QueueFullError):
                    raise result

        asyncio.run(main())
        self._end("async", len(numbers))

    def _step_loop(self, rng: random.Random) -> None:
        with self._looping:
            numbers, prompts, options = self._pick(rng, 12)
            ids: dict[str, int] = {}
            for number, prompt, params in zip(numbers, prompts, options, strict=True):
                try:
                    ids[
                        self.engine.add_request(prompt, params, request_id=rng.choice([None, f"{number}-{len(ids)}"]))
                    ] = number
                except QueueFullError:
                    break
            doomed = {name for name in ids if rng.random() < 0.2}
            steps, finished = 0, set()
            while self.engine.has_unfinished_requests():
                for output in self.engine.step():
                    self.cases.check(
                        ids[output.request_id], output, whole=output.finished and output.request_id not in doomed
                    )
                    finished |= {output.request_id} if output.finished else set()
                steps += 1
                if steps == 3:
                    self.engine.abort(list(doomed))
            assert finished == set(ids)
        self._end("step", max(len(ids), 1))

    def _score(self, rng: random.Random) -> None:
        numbers = [rng.randrange(len(self.cases.pairs)) for _ in range(rng.randint(1, 6))]
        heads, tails = zip(*[self.cases.pairs[i] for i in numbers], strict=True)
        if not self.policies:  # a score's prompt may share a step with others, but selection never acts on it
            assert self.engine.score(heads, tails) == [self.cases.scores[i] for i in numbers]
            self._end("score", len(numbers))

    def _errors(self, rng: random.Random) -> None:
        prompt = [rng.randrange(self.cases.vocab)] * 3
        stuck = {"max_tokens": 5, "min_tokens": 2, "allowed_token_ids": [3], "stop_token_ids": [3]}
        for prompts, options in (
            ([prompt, [self.cases.vocab]], {}),
            ([prompt, []], {}),
            (prompt, {"max_tokens": -1}),
            (prompt, stuck),
        ):
            try:
                outputs = self.engine.generate(prompts, options)
                assert outputs[0].outputs[0].finish_reason == "error"
            except ValidationError:
                pass
            self._end("error", 1)

    def _policy(self, rng: random.Random) -> None:
        self.engine.set_expert_selection(rng.choice(POLICIES))
        prompts = [[rng.randrange(self.cases.vocab) for _ in range(6)] for _ in range(8)]
        params = {"temperature": 0, "max_tokens": 8, "ignore_eos": True}
        assert all(len(output.outputs[0].token_ids) == 8 for output in self.engine.generate(prompts, params))
        self._end("not exact", len(prompts))
