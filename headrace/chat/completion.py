"""A chat completion and its chunks: the fold from one to the other, and its inverse.

Both work on OpenAI's dicts and not on models: a chunk passes here for every streamed token, and whatever a provider
sends beyond OpenAI's types has to come out as it went in. The models at the end describe the formats for OpenAPI.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["ChatCompletion", "ChatCompletionChunk", "Fold", "chunks_of"]

# Given by us or rebuilt by us; obfuscation only pads a chunk. All else at the top of a chunk is the completion's too.
_ENVELOPE = frozenset({"id", "object", "created", "model", "choices", "usage", "obfuscation"})
_CHOICE = frozenset({"index", "delta", "message", "logprobs", "finish_reason"})

# Strings that come whole: some providers repeat them in every delta, some send them empty after the first.
_WHOLE = frozenset({"id", "type", "role", "name", "format"})

# What a model did not write as text, so that no estimate should count it.
_NOT_WRITTEN = frozenset({"annotations", "data", "encrypted_content", "extra_content", "signature", "thinking_blocks"})


MOST_CHOICES = 128
"""Choices of an answer: as many as can be asked for."""
MOST_INDEXED = 1024
"""Items of one list that are told apart by their `index`, such as tool calls."""


class Fold:
    """The whole completion of a stream, gathered chunk by chunk.

    Strings of a delta concatenate, but for ids, types, names, roles and formats, which come whole. Lists grow, their
    items merging where they carry the same `index`; objects merge; of all else the last value stands. `null` never
    erases. Of a chunk that is not as OpenAI's, what makes no sense is left out.
    """

    __slots__ = ("_choices", "_fields", "_started", "usage")

    def __init__(self) -> None:
        """Start with nothing."""
        self._choices: dict[int, _Choice] = {}
        self._fields: dict[str, Any] = {}
        self._started = False
        self.usage: dict[str, Any] | None = None
        """OpenAI's usage object as the provider sent it, if it did."""

    def add(self, chunk: dict[str, Any]) -> None:
        """Fold in one `chat.completion.chunk`."""
        for key, value in chunk.items():
            if key not in _ENVELOPE:
                _replace(self._fields, key, value)
        usage = chunk.get("usage")
        if isinstance(usage, dict):
            self.usage = usage
        choices = chunk.get("choices")
        if isinstance(choices, list):
            for choice in choices:
                if isinstance(choice, dict):
                    self._add_choice(choice)

    def _add_choice(self, choice: dict[str, Any]) -> None:
        index = choice.get("index")
        if type(index) is not int:
            index = 0
        if not 0 <= index < MOST_CHOICES:
            return
        folded = self._choices.get(index)
        if folded is None:
            folded = self._choices[index] = _Choice()
        delta = choice.get("delta")
        if isinstance(delta, dict):
            _merge(folded.message, delta)
            self._started = self._started or any(value for key, value in delta.items() if key != "role")
        logprobs = choice.get("logprobs")
        if isinstance(logprobs, dict):
            if folded.logprobs is None:
                folded.logprobs = _Object()
            _merge(folded.logprobs, logprobs)
        if choice.get("finish_reason") is not None:
            folded.finish_reason = choice["finish_reason"]
        for key, value in choice.items():
            if key not in _CHOICE:
                folded.add_field(key, value)

    @property
    def started(self) -> bool:
        """Whether the model has said anything yet: text, reasoning, a refusal, a call. A role is nothing said."""
        return self._started

    @property
    def finished(self) -> bool:
        """Whether every choice seen has its finish reason, and there is one."""
        return bool(self._choices) and all(choice.finish_reason is not None for choice in self._choices.values())

    @property
    def text(self) -> str:
        """All that the model wrote, in all choices: content, reasoning, refusals, calls. For counting, not showing."""
        return "".join(text for choice in self._choices.values() for text in _texts(choice.message))

    def completion(self, *, id: str, created: int, model: str) -> dict[str, Any]:  # noqa: A002  # OpenAI's name
        """Return the `chat.completion` so far; `created` is in Unix seconds. `usage` is there if a chunk had it."""
        completion = {
            "id": id,
            "object": "chat.completion",
            "created": created,
            "model": model,
            "choices": [_render_choice(index, self._choices[index]) for index in sorted(self._choices)],
            **self._fields,
        }
        if self.usage is not None:
            completion["usage"] = self.usage
        return completion


def chunks_of(completion: dict[str, Any]) -> list[dict[str, Any]]:
    """Return chunks that fold to `completion`, in the order and form that OpenAI streams them.

    They lack `id`, `object` and `created`, which the caller gives to all alike. The usage, if known, is in a last
    chunk without choices.
    """
    common = {key: value for key, value in completion.items() if key not in _ENVELOPE or key == "model"}
    chunks = [
        {**common, "choices": [choice]} for whole in completion.get("choices") or () for choice in _choice_chunks(whole)
    ]
    if completion.get("usage") is not None:
        chunks.append({**common, "choices": [], "usage": completion["usage"]})
    return chunks or [{**common, "choices": []}]


class _Text(list[str]):
    """A string being gathered; joined once at the end, as adding to a long string each time would copy it."""


class _Object(dict[str, Any]):
    """An object being gathered."""


class _Items(list[Any]):
    """A list being gathered: those items that carry an index are _Objects, the others stay as they came."""


class _Choice:
    __slots__ = ("fields", "finish_reason", "logprobs", "message")

    def __init__(self) -> None:
        self.message = _Object()
        self.logprobs: _Object | None = None
        self.finish_reason: Any = None
        self.fields: dict[str, Any] = {}

    def add_field(self, key: str, value: Any) -> None:
        """Take a field of the choice itself that is not OpenAI's: a verdict, which replaces, or a list, which grows."""
        known = self.fields.get(key)
        if not isinstance(value, list):
            _replace(self.fields, key, value)
        elif isinstance(known, list):
            known += value
        else:
            self.fields[key] = value.copy()  # the chunk keeps its own


def _merge(into: _Object, delta: dict[str, Any]) -> None:
    for key, value in delta.items():
        known = into.get(key)
        if isinstance(value, str) and key not in _WHOLE:
            if type(known) is _Text:
                known.append(value)
            else:
                into[key] = _Text((value,))
        elif isinstance(value, dict):
            if type(known) is not _Object:
                known = into[key] = _Object()
            _merge(known, value)
        elif isinstance(value, list):
            if type(known) is not _Items:
                known = into[key] = _Items()
            for item in value:
                _add_item(known, item)
        else:
            _replace(into, key, value)


def _add_item(items: _Items, item: Any) -> None:
    if not isinstance(item, dict) or type(index := item.get("index")) is not int:
        items.append(item)
        return
    if not 0 <= index < MOST_INDEXED:
        return
    # From the end: nearly always it is the last one that grows.
    for known in reversed(items):
        if type(known) is _Object and known["index"] == index:
            break
    else:
        known = _Object()
        items.append(known)
    _merge(known, item)


def _replace(into: dict[str, Any], key: str, value: Any) -> None:
    """Set `key`, unless that would put nothing (null or the empty string) in the place of something."""
    if (value is not None and value != "") or into.get(key) is None:
        into[key] = value


def _render(value: Any) -> Any:
    match value:
        case _Text():
            return "".join(value)
        case _Object():
            return {key: _render(inner) for key, inner in value.items()}
        case _Items():
            return [_render(item) for item in value]
        case _:
            return value


def _render_choice(index: int, choice: _Choice) -> dict[str, Any]:
    message = {"role": "assistant", "content": None, "refusal": None, **_render(choice.message)}
    if isinstance(calls := message.get("tool_calls"), list):
        message["tool_calls"] = _render_calls(calls)
    return {
        "index": index,
        "message": message,
        "logprobs": _render(choice.logprobs),
        "finish_reason": choice.finish_reason,
        **choice.fields,
    }


def _render_calls(calls: list[Any]) -> list[Any]:
    """Return tool calls in the order of their index, which a whole completion does not have."""
    indexed = sorted((call for call in calls if _has_index(call)), key=lambda call: call["index"])
    whole = [call for call in calls if not _has_index(call)]
    return [{key: value for key, value in call.items() if key != "index"} for call in indexed] + whole


def _has_index(item: Any) -> bool:
    return isinstance(item, dict) and type(item.get("index")) is int


def _texts(value: Any, key: str = "") -> Iterator[str]:
    match value:
        case str() if key == "name" or key not in _WHOLE:
            yield value
        case dict():
            for inner_key, inner in value.items():
                if inner_key not in _NOT_WRITTEN:
                    yield from _texts(inner, inner_key)
        case list():
            for item in value:
                yield from _texts(item)


def _choice_chunks(whole: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield one choice of a completion as the choices of its chunks: role, what was thought, what was said, finish."""
    message = dict(whole.get("message") or {})
    role, content, refusal = (message.pop(key, None) for key in ("role", "content", "refusal"))
    calls = message.pop("tool_calls") if message.get("tool_calls") else ()
    logprobs = whole.get("logprobs")

    def chunk(delta: dict[str, Any], logprobs: Any = None, finish_reason: Any = None) -> dict[str, Any]:
        return {"index": whole.get("index", 0), "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}

    first = {"role": role or "assistant", "content": "" if isinstance(content, str) else content}
    yield chunk(first if refusal is None else {**first, "refusal": ""})
    for key, value in message.items():
        yield chunk({key: value})
    for key, text in (("content", content), ("refusal", refusal)):
        if text and isinstance(text, str):
            # All log probabilities go with the first text: a fold gives the same list wherever they stood.
            yield chunk({key: text}, logprobs)
            logprobs = None
    for index, call in enumerate(calls):
        yield chunk({"tool_calls": [{**call, "index": index}]})
    last = chunk({}, logprobs, whole.get("finish_reason"))
    yield {**last, **{key: value for key, value in whole.items() if key not in _CHOICE}}


# ---------------------------------------------------------------------------------------------------------------------
# The formats, for OpenAPI


class _Documented(BaseModel):
    model_config = ConfigDict(extra="allow")


FinishReason = Literal["stop", "length", "tool_calls", "content_filter", "function_call"]


class TopLogprob(_Documented):
    """A token that might have stood in a place, and how likely it was."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    """A token of the answer, how likely it was, and what else was."""

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
    """What the prompt's tokens were."""

    cached_tokens: int = 0
    audio_tokens: int = 0


class CompletionTokensDetails(_Documented):
    """What the completion's tokens were."""

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
