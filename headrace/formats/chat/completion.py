"""OpenAI's chat completions and chunks, as the OpenAPI document shows them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Documented(BaseModel):
    model_config = ConfigDict(extra="allow")


FinishReason = Literal["stop", "length", "tool_calls", "content_filter", "function_call"]


class TopLogprob(_Documented):
    """A token that was possible in a place, and its log probability."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    """A token of the answer, its log probability, and the likeliest others."""

    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(_Documented):
    """Log probabilities of a choice's tokens, if asked for."""

    content: list[TokenLogprob] | None
    refusal: list[TokenLogprob] | None


class CalledFunction(_Documented):
    """A function, and the arguments the model calls it with: JSON, unless the model erred."""

    name: str
    arguments: str


class CalledCustomTool(_Documented):
    """A custom tool, and its input."""

    name: str
    input: str


class ToolCall(_Documented):
    """A call that the model makes of a function or a custom tool."""

    id: str
    type: Literal["function", "custom"]
    function: CalledFunction | None = None
    custom: CalledCustomTool | None = None


class UrlCitation(_Documented):
    """Where on the web a part of the content comes from; indices are of its characters."""

    start_index: int
    end_index: int
    url: str
    title: str


class Annotation(_Documented):
    """A citation in the content."""

    type: Literal["url_citation"]
    url_citation: UrlCitation


class Audio(_Documented):
    """A spoken answer, in base64. `expires_at` is in Unix seconds."""

    id: str
    expires_at: int
    data: str
    transcript: str


class ResponseMessage(_Documented):
    """What the model said."""

    role: Literal["assistant"]
    content: str | None
    refusal: str | None
    annotations: list[Annotation] | None = None
    tool_calls: list[ToolCall] | None = None
    function_call: CalledFunction | None = None
    audio: Audio | None = None


class Choice(_Documented):
    """One of the `n` answers."""

    index: int
    message: ResponseMessage
    logprobs: ChoiceLogprobs | None
    finish_reason: FinishReason


class PromptTokensDetails(_Documented):
    """Kinds of the prompt's tokens."""

    cached_tokens: int = 0
    audio_tokens: int = 0


class CompletionTokensDetails(_Documented):
    """Kinds of the completion's tokens."""

    reasoning_tokens: int = 0
    audio_tokens: int = 0
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0


class CompletionUsage(_Documented):
    """What the completion used, in tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails | None = None
    completion_tokens_details: CompletionTokensDetails | None = None


_EXAMPLE_USAGE: Any = {
    "prompt_tokens": 12,
    "completion_tokens": 9,
    "total_tokens": 21,
    "prompt_tokens_details": {"cached_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 0},
}
_EXAMPLE_ID = "chatcmpl-019a5e0c3d7f4b1e8a2c6d9f0b3e5a71"


class ChatCompletion(_Documented):
    """OpenAI's `chat.completion`: the whole answer. `created` is in Unix seconds."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": _EXAMPLE_ID,
                    "object": "chat.completion",
                    "created": 1763900000,
                    "model": "demo",
                    "choices": [
                        {
                            "index": 0,
                            "message": {
                                "role": "assistant",
                                "content": "The channel that carries water to the wheel.",
                                "refusal": None,
                            },
                            "logprobs": None,
                            "finish_reason": "stop",
                        }
                    ],
                    "usage": _EXAMPLE_USAGE,
                }
            ]
        }
    )

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: CompletionUsage | None = None
    service_tier: str | None = None
    system_fingerprint: str | None = None


class FunctionDelta(_Documented):
    """More of a called function; `arguments` is to be appended."""

    name: str | None = None
    arguments: str | None = None


class ToolCallDelta(_Documented):
    """More of the tool call at `index`; only its first delta has the id and the type."""

    index: int
    id: str | None = None
    type: Literal["function", "custom"] | None = None
    function: FunctionDelta | None = None


class Delta(_Documented):
    """More of a message; its strings are to be appended."""

    role: Literal["developer", "system", "user", "assistant", "tool"] | None = None
    content: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCallDelta] | None = None
    function_call: FunctionDelta | None = None


class ChunkChoice(_Documented):
    """More of one of the `n` answers."""

    index: int
    delta: Delta
    logprobs: ChoiceLogprobs | None = None
    finish_reason: FinishReason | None


class ChatCompletionChunk(_Documented):
    """OpenAI's `chat.completion.chunk`: one event of a streamed answer."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": _EXAMPLE_ID,
                    "object": "chat.completion.chunk",
                    "created": 1763900000,
                    "model": "demo",
                    "choices": [
                        {"index": 0, "delta": {"content": "The channel"}, "logprobs": None, "finish_reason": None}
                    ],
                },
                {
                    "id": _EXAMPLE_ID,
                    "object": "chat.completion.chunk",
                    "created": 1763900000,
                    "model": "demo",
                    "choices": [],
                    "usage": _EXAMPLE_USAGE,
                },
            ]
        }
    )

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice] = Field(description="Empty in the last chunk, which has the usage.")
    usage: CompletionUsage | None = None
    service_tier: str | None = None
    system_fingerprint: str | None = None
