"""Chunks folded to the completion that a client would have had whole, and the reverse."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from headrace.formats.chat.texts import Texts
from headrace.formats.text_buffer import TextBuffer

# Fields that Headrace gives or rebuilds; obfuscation only pads a chunk. A completion has a chunk's other fields.
_ENVELOPE = frozenset({"id", "object", "created", "model", "choices", "usage", "obfuscation"})
_CHOICE = frozenset({"index", "delta", "message", "logprobs", "finish_reason"})

# Strings that come whole: some providers repeat them in every delta, some send them empty after the first.
_WHOLE = frozenset({"id", "type", "role", "name", "format"})

# Fields whose strings the model did not write as text, so no estimate counts them.
_NOT_WRITTEN = frozenset({
    "annotations", "data", "encrypted_content", "extra_content", "reasoning_items", "signature", "thinking_blocks",
})  # fmt: skip


MOST_CHOICES = 128
"""Choices of an answer: as many as a request can ask for."""
MOST_INDEXED = 1024
"""Items of one list that are told apart by their `index`, such as tool calls."""


class Fold:
    """The whole completion of a stream, gathered chunk by chunk.

    Strings of a delta concatenate, but for ids, types, names, roles and formats, which come whole. Lists grow, their
    items merging where they carry the same `index`; objects merge; other fields take the last value. `null` never
    erases. Fields of a wrong type are left out.
    """

    __slots__ = ("_choices", "_fields", "started", "usage")

    def __init__(self) -> None:
        """Start with nothing."""
        self._choices: dict[int, _Choice] = {}
        self._fields: dict[str, Any] = {}
        self.started = False
        """Whether the model has said anything: text, reasoning, a refusal or a call. A role alone does not count."""
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

    def add_texts(self, more: Texts) -> None:
        """Fold in the chunks of texts."""
        folded = self._choices.get(more.index)
        if folded is not None:
            known = folded.message.get("content")
            if type(known) is TextBuffer:
                known.add_all(more.texts)
            else:
                folded.message["content"] = TextBuffer(more.texts)

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
            if "thinking_origin" in delta:
                _place_thoughts(delta, folded.message)
            _merge(folded.message, delta)
            self.started = self.started or any(value for key, value in delta.items() if key != "role")
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
    def finished(self) -> bool:
        """Whether there is a choice, and every choice has its finish reason."""
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


def _place_thoughts(delta: dict[str, Any], message: _Object) -> None:
    """Add to a delta the characters of the content before each of its thoughts, if some text comes before them.

    The fold counts them, as most text of a stream bypasses the parser.
    """
    said, origin, thoughts = message.get("content"), delta["thinking_origin"], delta.get("thinking_blocks")
    if type(said) is TextBuffer and isinstance(origin, dict) and "after" not in origin and isinstance(thoughts, list):
        delta["thinking_origin"] = {**origin, "after": [sum(map(len, said))] * len(thoughts)}


def _merge(into: _Object, delta: dict[str, Any]) -> None:
    for key, value in delta.items():
        known = into.get(key)
        if isinstance(value, str) and key not in _WHOLE:
            if type(known) is TextBuffer:
                known.add(value)
            else:
                into[key] = TextBuffer((value,))
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
        case TextBuffer():
            return value.text
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
