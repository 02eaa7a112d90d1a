"""Bodies of requests, as OpenAI's API and vLLM's extensions have them. Unknown fields are kept and ignored; null is the default."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

Messages = list[dict[str, Any]]


class Body(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


class StreamOptions(Body):
    include_usage: bool | None = Field(None, description="a last chunk with the usage")
    continuous_usage_stats: bool | None = Field(None, description="the usage so far in every chunk")


class GenerationFields(Body):
    """What completions and chats have in common. Ranges are those of SamplingParams, which checks them."""

    model: str | None = Field(None, description="a served name; null = the one model")
    n: int | None = Field(None, description="answers per prompt")
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = None
    skip_special_tokens: bool | None = None
    logit_bias: dict[str, float] | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    prompt_logprobs: int | None = None
    structured_outputs: dict[str, Any] | None = Field(
        None, description="one of json, regex, choice, grammar, json_object, structural_tag"
    )
    response_format: dict[str, Any] | None = None
    thinking_token_budget: int | None = Field(
        None, description="tokens of reasoning, after which its end is forced; -1 = no limit"
    )
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    timings_per_token: bool | None = Field(None, description="llama-server's timings in the answer, or in every chunk")
    return_progress: bool | None = Field(
        None, description="a stream says how much of the prompt is computed, in prompt_progress"
    )
    add_special_tokens: bool | None = None
    truncate_prompt_tokens: int | None = Field(None, description="keep only the last tokens; -1 = what fits")
    return_token_ids: bool | None = Field(None, description="token ids beside the text")
    return_tokens_as_token_ids: bool | None = Field(None, description='tokens of logprobs as "token_id:123"')
    request_id: str | None = None
    user: str | None = None
    # Fields of lynx_rt and of vLLM's scheduler.
    expert_selection: str | None = Field(
        None, description='"exact" or "topk": the model\'s own routing; null = the server\'s'
    )
    isolation_group: str | None = None
    cache_salt: str | None = None
    priority: int | None = None
    timeout: float | None = Field(None, description="seconds after which the request ends")


class CompletionBody(GenerationFields):
    prompt: str | list[str] | list[int] | list[list[int]]
    max_tokens: int | None = Field(None, description="null = 16; 0 with echo = only the prompt")
    echo: bool | None = None
    logprobs: int | None = None
    best_of: int | None = None
    suffix: str | None = None


class ChatFields(Body):
    """What turns messages into a prompt."""

    messages: Messages
    tools: list[dict[str, Any]] | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    documents: list[dict[str, Any]] | None = None
    mm_processor_kwargs: dict[str, Any] | None = Field(None, description='{"max_pixels": N}: makes images smaller')
    reasoning_effort: str | None = None


class ChatBody(GenerationFields, ChatFields):
    max_tokens: int | None = Field(None, description="older name of max_completion_tokens")
    max_completion_tokens: int | None = Field(None, description="null = to the end of the context")
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    include_reasoning: bool | None = None
    separate_reasoning: bool | None = Field(
        None, description="false = the reasoning stays in the content, with its tags"
    )


class TokenizeBody(Body):
    model: str | None = None
    prompt: str | None = None
    messages: Messages | None = None
    tools: list[dict[str, Any]] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    mm_processor_kwargs: dict[str, Any] | None = None


class DetokenizeBody(Body):
    model: str | None = None
    tokens: list[int]


class AbortBody(Body):
    request_id: str


class SelectionBody(Body):
    expert_selection: str
