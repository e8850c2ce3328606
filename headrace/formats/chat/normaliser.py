"""Providers' answers, made exact before they are folded, stored or passed on.

Servers that speak OpenAI's format are not exact: they leave an index out, repeat a role, send an empty list of calls.
Normalised answers have what `CreateChatCompletionResponse` and `CreateChatCompletionStreamResponse` of OpenAI's
specification require, with their types. Fields beyond it pass.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from headrace.errors import UpstreamError
from headrace.formats.chat.finish_reasons import exact_reason
from headrace.formats.chat.texts import PartText
from headrace.formats.chat.tool_calls import CalledFunction, ToolCalls, render_arguments
from headrace.formats.chat.usage import exact_usage, no_smaller

# The types of parts of a content that is a list.
_TEXT = frozenset({None, "text", "output_text"})
_THOUGHT = frozenset({"thinking", "reasoning", "reasoning_text", "summary_text", "thought"})
_REFUSAL = frozenset({"refusal"})

_SERVICE_TIERS = frozenset({"auto", "default", "flex", "scale", "priority", "fast"})
# What a chunk without choices keeps when its other fields go with the next one.
_ITS_OWN = frozenset({"choices", "usage", "moderation"})
# What stands for the logarithm of nothing, in OpenAI's answers too.
_NEVER = -9999.0


class Normaliser:
    """Makes the chunks of one call exact, one after another, or its whole completion."""

    def __init__(self, *, taken: Collection[str] = ()) -> None:
        """`taken` are the ids of the calls in the conversation so far, which no new call gets."""
        self._choices: dict[int, _Choice] = {}
        self._held: dict[str, Any] = {}
        self._taken = dict.fromkeys(taken)  # nearly always empty, and an empty set takes three times as much
        self._usage: dict[str, Any] | None = None
        # Whether the last chunk had fields of other types at its top: a stream has them in all chunks or in none.
        self._odd = True

    def chunk(self, chunk: dict[str, Any]) -> dict[str, Any] | None:
        """Return an exact chunk made of a provider's, or None if the chunk holds nothing for a reader.

        A chunk without choices is returned only if it has the usage, or what moderation found, which may come last. Its
        other fields go with the next chunk.

        Raises:
            UpstreamError: The chunk reports a failure of the provider.
        """
        choices = chunk.get("choices")
        if chunk.get("usage") is not None:
            self._take_usage(chunk, chunk["usage"])
        if self._odd:
            self._odd = _exact_envelope(chunk)
        if type(choices) is list and len(choices) == 1 and type(choices[0]) is dict:
            choice = self._chunk_choice(choices[0], 0)
            if choice["finish_reason"] is not None or "usage" in choice["delta"]:
                _exact_envelope(chunk)
                elsewhere = _usage_elsewhere(chunk, choice, choice["delta"])
                if chunk.get("usage") is None:
                    self._take_usage(chunk, elsewhere)
        elif not choices:
            return self._without_choices(chunk)
        elif isinstance(choices, list):
            whole = enumerate([choice for choice in choices if isinstance(choice, dict)])
            chunk["choices"] = [self._chunk_choice(choice, place) for place, choice in whole]
            if not chunk["choices"]:
                return chunk if chunk.get("usage") is not None else None
        else:
            raise UpstreamError("The model's provider streamed something that is not a chunk.")
        if self._held:
            chunk, self._held = self._held | chunk, {}
        return chunk

    def _without_choices(self, chunk: dict[str, Any]) -> dict[str, Any] | None:
        if "choices" in chunk:
            self._held |= {name: value for name, value in chunk.items() if name not in _ITS_OWN}
        chunk["choices"] = []
        return chunk if chunk.get("usage") is not None or chunk.get("moderation") is not None else None

    def _take_usage(self, chunk: dict[str, Any], said: Any) -> None:
        """Put exact usage into a chunk. Counts are totals up to now, so they never get smaller."""
        usage = exact_usage(said)
        if usage is None:
            chunk.pop("usage", None)
            return
        chunk["usage"] = self._usage = no_smaller(self._usage, usage)

    def close(self) -> list[dict[str, Any]]:
        """Return the chunks that finish the choices of an ended stream whose provider gave no finish reason."""
        return [
            {"choices": [{"index": index, "delta": state.rest(), "logprobs": None, "finish_reason": state.usual_end}]}
            for index, state in self._choices.items()
            if not state.finished
        ]

    def completion(self, completion: dict[str, Any]) -> dict[str, Any]:
        """Return an exact whole completion, made of the one that came.

        Raises:
            UpstreamError: The completion has no choice, or reports a failure of the provider.
        """
        choices = completion.get("choices")
        choices = [choice for choice in choices if isinstance(choice, dict)] if isinstance(choices, list) else []
        if not choices:
            raise UpstreamError("The model's provider answered without a single choice.")
        exact = {**completion, "choices": [self._whole_choice(*numbered) for numbered in enumerate(choices)]}
        if len(choices) > 1 and len({choice["index"] for choice in exact["choices"]}) < len(choices):
            for place, choice in enumerate(exact["choices"]):
                choice["index"] = place
        _exact_envelope(exact)
        first = exact["choices"][0]
        elsewhere = _usage_elsewhere(exact, first, first["message"])
        usage = exact_usage(exact.pop("usage", None)) or exact_usage(elsewhere)
        if usage is not None:
            exact["usage"] = usage
        return exact

    def _chunk_choice(self, choice: dict[str, Any], place: int) -> dict[str, Any]:
        index = choice.get("index")
        if type(index) is not int or index < 0:
            index = choice["index"] = place
        state = self._choices.get(index)
        if state is None:
            state = self._choices[index] = _Choice(self._taken)
        delta = choice.get("delta")
        if type(delta) is not dict:
            delta = choice["delta"] = _message(choice)
        state.exact_delta(delta)
        reason = choice.get("finish_reason")
        if reason is None or (ours := exact_reason(reason)) is None:
            choice["finish_reason"] = None
        else:
            _set_reason(choice, ours)
            if not state.finished:
                state.finished = True
                delta |= state.rest(delta)
        if choice.get("logprobs") is not None:
            choice["logprobs"] = _exact_logprobs(choice["logprobs"])
        return choice

    def _whole_choice(self, place: int, choice: dict[str, Any]) -> dict[str, Any]:
        state = _Choice(self._taken)
        choice = dict(choice)
        message = _message(choice)
        state.exact_delta(message, whole=True)
        for call in message.get("tool_calls", ()):
            call.pop("index")
            if call.get("function", {}).get("arguments") == "":
                call["function"]["arguments"] = "{}"
        if "function_call" in message:
            message["function_call"]["arguments"] = message["function_call"]["arguments"] or "{}"
        if isinstance(audio := message.get("audio"), dict):
            whole = {"id": "", "expires_at": 0, "data": "", "transcript": "", **audio}
            message["audio"] = whole if audio else None
        index = choice.get("index")
        exact = {
            **choice,
            "index": index if type(index) is int and index >= 0 else place,
            "message": {"content": None, "refusal": None, **message, "role": "assistant"},
            "logprobs": _exact_logprobs(choice.get("logprobs")),
        }
        _set_reason(exact, exact_reason(choice.get("finish_reason")) or state.usual_end)
        return exact


class _Choice:
    """One choice, as far as it has arrived."""

    __slots__ = ("_calls", "_function", "_told_role", "finished")

    def __init__(self, taken: dict[str, None]) -> None:
        self.finished = False
        self._told_role = False
        self._calls = ToolCalls(taken)
        self._function: CalledFunction | None = None

    @property
    def usual_end(self) -> str:
        """The finish reason of a choice whose provider gives none and reports no failure."""
        if self._calls:
            return "tool_calls"
        return "stop" if self._function is None else "function_call"

    def exact_delta(self, delta: dict[str, Any], *, whole: bool = False) -> None:
        """Make a delta exact, or a message, which is a `whole` one."""
        if not self._told_role:
            delta["role"] = "assistant"
            self._told_role = True
        elif "role" in delta:
            del delta["role"]
        content = delta.get("content")
        if content is not None and type(content) is not str:
            _split_content(delta, content)
        if len(delta) == 1 and content is not None:
            return  # a piece of text: what nearly all are
        for name in ("refusal", "reasoning_content"):
            said = delta.get(name)
            if said is not None and not isinstance(said, str):
                delta[name] = _joined(said, _TEXT | _THOUGHT)
        if "annotations" in delta:
            _exact_annotations(delta)
        if "function_call" in delta:
            self._exact_function(delta)
        if "tool_calls" in delta:
            calls = delta["tool_calls"]
            if exact := self._calls.exact(calls, whole=whole):
                delta["tool_calls"] = exact
            else:
                del delta["tool_calls"]

    def rest(self, delta: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return the fields that complete an ended choice, in addition to those of its last `delta`."""
        rest: dict[str, Any] = {}
        if calls := self._calls.rest():
            rest["tool_calls"] = [*(delta or {}).get("tool_calls", ()), *calls]
        if self._function is not None and self._function.lacks_arguments():
            rest["function_call"] = {**(delta or {}).get("function_call", {}), "arguments": "{}"}
        return rest

    def _exact_function(self, delta: dict[str, Any]) -> None:
        said = delta["function_call"]
        if not isinstance(said, dict) or not (said or self._function):
            del delta["function_call"]
            return
        if self._function is None:
            self._function = CalledFunction()
        delta["function_call"] = self._function.exact(said)


def _message(choice: dict[str, Any]) -> dict[str, Any]:
    """Remove the message from a choice and return it: a `message`, a `delta` in its place, or plain `text`."""
    for name in ("message", "delta"):
        said = choice.pop(name, None)
        if isinstance(said, dict):
            return said
    text = choice.pop("text", None)
    return {"content": text} if isinstance(text, str) else {}


def _set_reason(choice: dict[str, Any], ours: str) -> None:
    """Set OpenAI's finish reason, and keep the provider's own word as `native_finish_reason`."""
    said = choice.get("finish_reason")
    choice["finish_reason"] = ours
    if said and said != ours and exact_reason(said) is not None:
        choice.setdefault("native_finish_reason", said)


def _exact_envelope(chunk: dict[str, Any]) -> bool:
    """Remove a chunk's or completion's fields of a wrong type; return whether there were any."""
    wrong = False
    for name in ("model", "system_fingerprint"):
        if type(chunk.get(name, "")) is not str:
            del chunk[name]
            wrong = True
    tier = chunk.get("service_tier")
    if tier is None or (type(tier) is str and tier in _SERVICE_TIERS):
        return wrong
    chunk["native_service_tier"] = chunk.pop("service_tier")
    return True


def _usage_elsewhere(chunk: Mapping[str, Any], *inner: dict[str, Any]) -> Any:
    """Return the usage that some servers put into the choice or its message, or under a name of their own."""
    found = None
    for part in inner:
        said = part.pop("usage", None)
        found = found or said
    own = chunk.get("x_groq")
    return found or (own.get("usage") if isinstance(own, dict) else None)


def _exact_logprobs(logprobs: Any) -> dict[str, Any] | None:
    if not isinstance(logprobs, dict):
        return None
    exact = {"content": None, "refusal": None, **logprobs}
    for name in ("content", "refusal"):
        tokens = exact[name]
        exact[name] = [_exact_token(token) for token in tokens] if isinstance(tokens, list) else None
    return exact


def _exact_token(token: Any) -> dict[str, Any]:
    exact = _exact_logprob(token)
    others = exact.get("top_logprobs")
    exact["top_logprobs"] = [_exact_logprob(other) for other in others] if isinstance(others, list) else []
    return exact


def _exact_logprob(token: Any) -> dict[str, Any]:
    exact = {"token": "", "bytes": None, **(token if isinstance(token, dict) else {})}
    if not isinstance(exact.get("logprob"), (int, float)):
        exact["logprob"] = _NEVER
    if not isinstance(exact["token"], str):
        exact["token"] = ""
    return exact


def _exact_annotations(delta: dict[str, Any]) -> None:
    """Put citations as OpenAI has them; some servers name the page beside the type."""
    said = delta.pop("annotations")
    exact = []
    for one in said if isinstance(said, list) else ():
        cited = one.get("url_citation", one) if isinstance(one, dict) else None
        if isinstance(cited, dict) and isinstance(cited.get("url"), str):
            cited = {name: value for name, value in cited.items() if name != "type" and value is not None}
            exact.append(
                {"type": "url_citation", "url_citation": {"start_index": 0, "end_index": 0, "title": "", **cited}}
            )
    if exact:
        delta["annotations"] = exact


def _split_content(delta: dict[str, Any], content: Any) -> None:
    """Replace a list of parts by its text; its thoughts and refusals go to fields of their own."""
    if isinstance(content, list) or (isinstance(content, dict) and ("type" in content or "text" in content)):
        delta["content"] = _joined(content, _TEXT) or None
        if thought := _joined(content, _THOUGHT):
            delta["reasoning_content"] = PartText((delta.get("reasoning_content") or "") + thought)
        if refusal := _joined(content, _REFUSAL):
            delta["refusal"] = (delta.get("refusal") or "") + refusal
    else:
        delta["content"] = render_arguments(content)  # some servers parse the JSON that a model was asked for


def _joined(parts: Any, kinds: Collection[str | None]) -> str:
    return "".join(_texts(parts if isinstance(parts, list) else [parts], kinds))


def _texts(parts: Sequence[Any], kinds: Collection[str | None]) -> Iterator[str]:
    for part in parts:
        if isinstance(part, str):
            if None in kinds:
                yield part
        elif isinstance(part, dict) and isinstance(part.get("type"), str | None) and part.get("type") in kinds:
            inner = part.get("text", part.get(str(part.get("type")), part.get("content")))
            if isinstance(inner, str):
                yield inner
            elif isinstance(inner, list):
                yield from _texts(inner, _TEXT)
