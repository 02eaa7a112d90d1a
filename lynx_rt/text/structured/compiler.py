"""Compiles grammars with llguidance, and follows them token by token."""

from __future__ import annotations

import re
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import TYPE_CHECKING, Any

from lynx_rt.errors import LynxError, ValidationError
from lynx_rt.library_errors import Guard
from lynx_rt.text.structured.grammar import lark_of
from lynx_rt.text.structured.native_calls import native_call
from lynx_rt.text.structured.spec import FIELD, StructuredOutputs

if TYPE_CHECKING:
    import llguidance
    import numpy as np
    from numpy.typing import NDArray

    from lynx_rt.text.tokenizer import Tokenizer

COMPILE_SECONDS = 2.0
_MAX_COMPILES = 2  # at once, those that have run over their deadline included
_CACHED_GRAMMARS = 64
_MAX_ERROR_CHARS = 500
_GUARD = Guard("llguidance failed")
_EXCERPT = re.compile(r"\n +\d+ \| .*", re.DOTALL)  # of the grammar, in llguidance's error texts
_POSITION = re.compile(r"at \d+\(\d+\): ")


class GrammarCompiler:
    """Compiles the grammars of one model. Thread-safe.

    vocab_size: the model's; tokens that the tokenizer lacks are never allowed.  eos_token_ids: the ends of text.
    seconds: the deadline of a compilation, the wait for a free place included. One that runs over it goes on in its thread, and
    its grammar is cached when it is done.
    """

    def __init__(
        self, tokenizer: Tokenizer, vocab_size: int, eos_token_ids: Iterable[int], seconds: float = COMPILE_SECONDS
    ) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos_token_ids = sorted(eos_token_ids)
        self._seconds = seconds
        self._vocabulary: _Vocabulary | None = None
        self._loading = threading.Lock()
        self._lock = threading.Lock()
        self._cache: OrderedDict[str, Grammar] = OrderedDict()  # most recently used last
        self._places = threading.BoundedSemaphore(_MAX_COMPILES)
        self.on_compile: Callable[[float], None] = lambda seconds: None

    def load(self) -> None:
        """Reads the vocabulary, which the first compilation does otherwise: about a second for 150,000 tokens."""
        self._load()

    def compile(self, spec: StructuredOutputs) -> Grammar:
        """Returns the grammar of `spec`, which may have been compiled before.

        Raises ValidationError where llguidance refuses it, where it takes too long, and where llguidance is not installed.
        """
        key = spec.key
        with self._lock:
            if (found := self._cache.get(key)) is not None:
                self._cache.move_to_end(key)
                return found
        vocabulary = self._load()
        deadline = time.monotonic() + self._seconds
        late = ValidationError(f"{FIELD}: it could not be compiled within {self._seconds:g} s", FIELD)
        if not self._places.acquire(timeout=self._seconds):
            raise late
        result: Future[Grammar] = Future()

        def work() -> None:
            start = time.monotonic()
            try:
                grammar = vocabulary.compile(spec)
                self.on_compile(time.monotonic() - start)
                with self._lock:
                    self._cache[key] = grammar
                    if len(self._cache) > _CACHED_GRAMMARS:
                        self._cache.popitem(last=False)
                result.set_result(grammar)
            except BaseException as error:
                result.set_exception(error)
            finally:
                self._places.release()

        try:
            threading.Thread(target=work, name="lynx_rt-grammar").start()
        except BaseException:
            self._places.release()
            raise
        try:
            return result.result(max(0.0, deadline - time.monotonic()))
        except FutureTimeout:
            raise late from None

    def _load(self) -> _Vocabulary:
        with self._loading:
            if self._vocabulary is None:
                self._vocabulary = _Vocabulary(self._tokenizer, self._vocab_size, self._eos_token_ids)
            return self._vocabulary


class _Vocabulary:
    """A tokenizer as llguidance knows it: the bytes of each token, as they appear in the text."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_token_ids: list[int]) -> None:
        try:
            import llguidance
        except ImportError as error:
            raise ValidationError(
                f'{FIELD} needs llguidance, which cannot be imported ({error}): pip install "lynx_rt[serve]"', FIELD
            ) from None
        if not eos_token_ids:
            raise ValidationError(f"{FIELD} needs an end-of-text token, and this model names none", FIELD)
        special = {token_id for token_id in tokenizer.special_token_ids if token_id < vocab_size} | set(eos_token_ids)
        self.token_bytes = tokenizer.token_bytes
        self.eos_token_ids = eos_token_ids
        self.vocab_size = vocab_size
        self.special_tokens = {tokenizer.piece(token_id): token_id for token_id in sorted(special)}
        self.special_tokens.pop("", None)
        tokens = _Tokens(self, tokenizer, special)
        self.native = llguidance.LLTokenizer(tokens, n_vocab=vocab_size, eos_token=eos_token_ids)
        del tokens.tokens
        # Errors with a dump of the parser's state would be of no use to the caller.
        self.limits = llguidance.LLParserLimits(verbose_errors=False)
        self._matcher = llguidance.LLMatcher

    def compile(self, spec: StructuredOutputs) -> Grammar:
        with Guard(f"{FIELD}: the grammar is refused", FIELD, ValidationError):
            lark = lark_of(spec, self.special_tokens)
            matcher = self._matcher(self.native, lark, log_level=0, limits=self.limits)
            if matcher.is_error():
                text = _EXCERPT.sub("", matcher.get_error())
                if spec.grammar is None:
                    text = _POSITION.sub("", text, count=1)  # a place in a text that the caller has never seen
                raise ValidationError(f"{FIELD}: {_one_line(text)}", FIELD)
            matcher.compute_bitmask()
            if matcher.is_error():
                raise ValidationError(f"{FIELD}: no text satisfies it: {_one_line(matcher.get_error())}", FIELD)
        return Grammar(self, matcher)


class _Tokens:
    """What LLTokenizer reads of a tokenizer. It keeps this object, which therefore must not keep the vocabulary."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, vocabulary: _Vocabulary, tokenizer: Tokenizer, special: set[int]) -> None:
        self._vocabulary = weakref.ref(vocabulary)
        self.eos_token_id = vocabulary.eos_token_ids[0]
        self.tokens = [tokenizer.token_bytes(token_id) for token_id in range(vocabulary.vocab_size)]
        self.special_token_ids = sorted(special)

    def __call__(self, text: str) -> list[int]:
        """Returns tokens that spell `text`."""
        vocabulary = self._vocabulary()
        return [] if vocabulary is None else vocabulary.native.greedy_tokenize(text)


class Grammar:
    """A compiled grammar. Thread-safe."""

    def __init__(self, vocabulary: _Vocabulary, start: llguidance.LLMatcher) -> None:
        self._vocabulary = vocabulary
        self._start = start
        self.vocab_size = vocabulary.vocab_size

    def matcher(
        self,
        words: NDArray[np.int32],
        start_after: str | None = None,
        min_tokens: int = 0,
        stop_token_ids: Iterable[int] = (),
    ) -> Matcher:
        """Returns a matcher at the start of a text.

        words: [ceil(vocabulary / 32)], where it writes its masks.  start_after: as in StructuredOutputs.  min_tokens: before this
        many tokens, neither an end of text nor a token of stop_token_ids is allowed, unless nothing else is.
        """
        state = native_call(self._start.deep_copy)
        return Matcher(self._vocabulary, state, words, start_after, min_tokens, stop_token_ids)


class Matcher:
    """One text under a grammar. It has no lock: the caller makes one call at a time.

    error: why no token can follow; "" = one can.
    """

    def __init__(
        self,
        vocabulary: _Vocabulary,
        state: llguidance.LLMatcher,
        words: NDArray[np.int32],
        start_after: str | None,
        min_tokens: int,
        stop_token_ids: Iterable[int],
    ) -> None:
        self.error = ""
        self._vocabulary = vocabulary
        self._state = state
        self._words = words
        self._place = (words.ctypes.data, words.nbytes)
        self._start_after = start_after.encode() if start_after else b""
        self._free = bytearray()  # the end of the text before start_after
        self._ends = vocabulary.eos_token_ids
        self._stops = [*vocabulary.eos_token_ids, *stop_token_ids]
        self._min_tokens = min_tokens
        self._num_tokens = 0

    @property
    def has_begun(self) -> bool:
        """Whether the text is held to the grammar: it has start_after, if there is one."""
        return not self._start_after

    @property
    def is_finished(self) -> bool:
        """Whether nothing but an end of text can follow."""
        return not self._start_after and not self.error and native_call(self._state.is_stopped)

    def fill(self) -> None:
        """Sets the bits of the tokens that may follow, and clears the others: token v is bit v % 32 of word v / 32."""
        words = self._words
        if self._start_after:
            words[:] = -1
            _clear(words, self._stops if self._num_tokens < self._min_tokens else self._ends)
            return
        if not self.error:
            self._call(self._state.unsafe_compute_mask_ptr, *self._place)
        if self.error:  # llguidance allows the end of text here
            words[:] = 0
        elif self._num_tokens < self._min_tokens:
            before = words.copy()
            _clear(words, self._stops)
            if not words.any():
                words[:] = before

    def accept(self, token_id: int) -> None:
        """Goes on by a token. One that does not fit is an error."""
        self._num_tokens += 1
        if self._start_after:
            self._end_free_text(token_id)
        elif not self.error:
            self._call(self._state.consume_token, token_id)

    def _end_free_text(self, token_id: int) -> None:
        """Starts the grammar where the token completes start_after. What the token has beyond it is the grammar's."""
        self._free += self._vocabulary.token_bytes(token_id)
        place = self._free.find(self._start_after)
        if place < 0:
            del self._free[: -len(self._start_after)]
            return
        rest = bytes(self._free[place + len(self._start_after) :]).lstrip()
        self._start_after = b""
        if rest:
            self._call(lambda: self._state.consume_tokens(self._vocabulary.native.tokenize_bytes(rest)))

    def _call(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Calls llguidance. An error stays in `error`."""
        try:
            with _GUARD:
                native_call(function, *arguments)
                if self._state.is_error():
                    raise ValidationError(f"no token can follow: {_one_line(self._state.get_error())}", FIELD)
        except LynxError as error:
            self.error = f"{FIELD}: {error}"


def _clear(words: NDArray[Any], token_ids: Iterable[int]) -> None:
    for token_id in token_ids:
        words[token_id // 32] &= ~(1 << token_id % 32) if token_id % 32 != 31 else 0x7FFFFFFF


def _one_line(text: str) -> str:
    """Returns an error text of llguidance without line ends and without the mark of what it leaves out."""
    return " ".join(text.replace("<non-verbose/>", "").split())[:_MAX_ERROR_CHARS]
