"""What an engine does with text alone: prompts are parsed, chats rendered, texts encoded and decoded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lynx_rt.engine.images import ImagePlaceholder, as_prompt
from lynx_rt.engine.input_processor import InputProcessor
from lynx_rt.engine.options import check_bool
from lynx_rt.engine.sampling_params import SamplingParams
from lynx_rt.errors import ValidationError, shown
from lynx_rt.text.prompts import ParsedPrompt
from lynx_rt.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from lynx_rt.engine.driver import Driver

Conversation = Sequence[Mapping[str, Any]]


class EngineText:
    """The part of Engine that reads and writes text, and runs nothing."""

    _tokenizer: Tokenizer | None
    _inputs: InputProcessor
    _driver: Driver

    def render_chat(self, messages: Conversation, **options: Any) -> dict[str, Any]:
        """Returns one conversation as a prompt for any method: {"prompt": text, "prompt_token_ids": ids}, images as multi_modal_data.

        options: chat_template, add_generation_prompt, continue_final_message, tools, chat_template_kwargs as for `chat`.
        """
        (parsed,) = self._parse({"messages": messages, **options})
        return as_prompt(parsed)

    @property
    def inputs(self) -> InputProcessor:
        """Makes requests for `open_streams`: renders, tokenizes and checks. A server calls it outside of its event loop's thread."""
        return self._inputs

    def get_tokenizer(self) -> Tokenizer:
        """Returns the tokenizer. Raises ValidationError if the engine was made without one."""
        if self._tokenizer is None:
            raise ValidationError("this engine was made with skip_tokenizer_init=True", "tokenizer")
        return self._tokenizer

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Returns the token ids of one text; `add_special_tokens` as in transformers, whatever the text starts with."""
        if not isinstance(text, str):
            raise ValidationError(f"text must be a string (one at a time), got {shown(text)}", "text")
        check_bool("add_special_tokens", add_special_tokens)
        return self.get_tokenizer().encode(text, add_special_tokens)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Returns the text of token ids; ids outside the vocabulary add nothing."""
        check_bool("skip_special_tokens", skip_special_tokens)
        return self.get_tokenizer().decode(ids, skip_special_tokens)

    @property
    def image_placeholder(self) -> ImagePlaceholder | None:
        """What stands for an image in a prompt's text, as `text` with the tokens around it; None where the model reads text only."""
        return self._inputs.images.placeholder(self._tokenizer)

    def get_default_sampling_params(self) -> SamplingParams:
        """Returns the defaults with the model's generation_config.json on top; `do_sample: false` means temperature 0.

        A value of that file that cannot be used is warned of by name (GenerationConfigWarning), once.
        """
        return self._inputs.default_sampling_params()

    def _parse(
        self, prompts: Any, *, name: str = "prompt", add_special_tokens: bool | None = None
    ) -> list[ParsedPrompt]:
        self._driver.check_open()
        return self._inputs.parse(prompts, name, add_special_tokens)
