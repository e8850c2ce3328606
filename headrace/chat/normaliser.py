"""What providers answer, made OpenAI's to the letter, before it is folded, stored or passed on.

Servers that speak OpenAI's format are not exact: they leave an index out, repeat a role, send an empty list of calls.
What comes out of here has what `CreateChatCompletionResponse` and `CreateChatCompletionStreamResponse` of OpenAI's
specification require, with their types. Fields beyond it pass.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import orjson

from headrace.chat.usage import exact_usage
from headrace.errors import UpstreamError
from headrace.ids import new_id

_FINISH_REASONS = frozenset({"stop", "length", "tool_calls", "content_filter", "function_call"})
# Other servers' words for the same.
_SYNONYMS = {
    "completed": "stop",
    "end": "stop",
    "end_turn": "stop",
    "eos": "stop",
    "eos_token": "stop",
    "stop_sequence": "stop",
    "max_length": "length",
    "max_output_tokens": "length",
    "max_tokens": "length",
    "model_length": "length",
    "token_limit": "length",
    "safety": "content_filter",
    "sensitive": "content_filter",
    "tool_call": "tool_calls",
    "tool_use": "tool_calls",
}
# The types of parts of a content that is a list.
_TEXT = frozenset({"text", "output_text"})
_THOUGHT = frozenset({"thinking", "reasoning"})


class Normaliser:
    """Makes the chunks of one call exact, one after another, or its whole completion."""

    def __init__(self, *, taken: Collection[str] = ()) -> None:
        """`taken` are the ids of the calls that the conversation has already: none is given twice."""
        self._choices: dict[int, _Choice] = {}
        self._held: dict[str, Any] = {}
        self._taken = set(taken)

    def chunk(self, chunk: dict[str, Any]) -> dict[str, Any] | None:
        """Return an exact chunk, made of the one that came, or None if it says nothing.

        A chunk without choices is returned only if it has the usage. What else such a chunk holds goes with the next.

        Raises:
            UpstreamError: It says that the provider failed.
        """
        choices = chunk.get("choices")
        usage = chunk.get("usage")
        if usage is not None and (usage := exact_usage(usage)) is None:
            del chunk["usage"]
        elif usage is not None:
            chunk["usage"] = usage
        if not isinstance(choices, list) or not choices:
            if "choices" in chunk:
                self._held |= {name: value for name, value in chunk.items() if name not in ("choices", "usage")}
            chunk["choices"] = []
            return chunk if usage is not None else None
        if len(choices) == 1 and type(choices[0]) is dict:
            self._chunk_choice(choices[0], 0)
        else:
            whole = enumerate([choice for choice in choices if isinstance(choice, dict)])
            chunk["choices"] = [self._chunk_choice(choice, place) for place, choice in whole]
            if not chunk["choices"]:
                return chunk if usage is not None else None
        if self._held:
            chunk, self._held = self._held | chunk, {}
        return chunk

    def close(self) -> list[dict[str, Any]]:
        """Return the chunks that finish the choices of a stream that is over, where its provider left that out."""
        return [
            {"choices": [{"index": index, "delta": {}, "logprobs": None, "finish_reason": state.usual_end}]}
            for index, state in self._choices.items()
            if not state.finished
        ]

    def completion(self, completion: dict[str, Any]) -> dict[str, Any]:
        """Return an exact whole completion, made of the one that came.

        Raises:
            UpstreamError: It has no choice, or says that the provider failed.
        """
        choices = completion.get("choices")
        choices = [choice for choice in choices if isinstance(choice, dict)] if isinstance(choices, list) else []
        if not choices:
            raise UpstreamError("The model's provider answered without a single choice.")
        exact = {**completion, "choices": [self._whole_choice(*numbered) for numbered in enumerate(choices)]}
        usage = exact_usage(exact.pop("usage", None))
        return exact if usage is None else exact | {"usage": usage}

    def _chunk_choice(self, choice: dict[str, Any], place: int) -> dict[str, Any]:
        index = choice.get("index")
        if type(index) is not int or index < 0:
            index = choice["index"] = place
        state = self._choices.get(index)
        if state is None:
            state = self._choices[index] = _Choice(self._taken)
        delta = choice.get("delta")
        if not isinstance(delta, dict):
            message = choice.pop("message", None)
            delta = choice["delta"] = message if isinstance(message, dict) else {}
        state.exact_delta(delta)
        reason = choice.get("finish_reason")
        if reason is None or reason == "":
            choice["finish_reason"] = None
        else:
            _exact_reason(choice, reason)
            state.finished = True
        if choice.get("logprobs") is not None:
            choice["logprobs"] = _exact_logprobs(choice["logprobs"])
        return choice

    def _whole_choice(self, place: int, choice: dict[str, Any]) -> dict[str, Any]:
        state = _Choice(self._taken)
        message = choice.get("message")
        message = message if isinstance(message, dict) else {}
        calls = message.get("tool_calls")
        state.exact_delta(message)
        if isinstance(calls, list) and "tool_calls" in message:
            for call in message["tool_calls"]:
                call.pop("index")
        index = choice.get("index")
        exact = {
            **choice,
            "index": index if type(index) is int and index >= 0 else place,
            "message": {"content": None, "refusal": None, **message, "role": "assistant"},
            "logprobs": _exact_logprobs(choice.get("logprobs")),
        }
        _exact_reason(exact, choice.get("finish_reason") or state.usual_end)
        return exact


class _Choice:
    """What has come of one choice."""

    __slots__ = ("_calls", "_places", "_taken", "_told_role", "finished")

    def __init__(self, taken: set[str]) -> None:
        self.finished = False
        self._told_role = False
        self._taken = taken
        self._calls: list[_Call] = []
        self._places: dict[int, _Call] = {}

    @property
    def usual_end(self) -> str:
        """Why a choice ended whose provider does not say why, and does not say that it failed."""
        return "tool_calls" if self._calls else "stop"

    def exact_delta(self, delta: dict[str, Any]) -> None:
        """Make a delta exact, or a message, which is a delta that has everything."""
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
        if delta.get("refusal") is not None and not isinstance(delta["refusal"], str):
            del delta["refusal"]
        if "function_call" in delta and not isinstance(delta["function_call"], dict):
            del delta["function_call"]
        if "tool_calls" in delta:
            calls = delta["tool_calls"]
            calls = calls if isinstance(calls, list) else []
            exact = [self._exact_call(call) for call in calls if isinstance(call, dict)]
            if exact:
                delta["tool_calls"] = exact
            else:
                del delta["tool_calls"]

    def _exact_call(self, piece: dict[str, Any]) -> dict[str, Any]:
        kind = "custom" if piece.get("type") == "custom" or isinstance(piece.get("custom"), dict) else "function"
        said = piece.get(kind)
        said = said if isinstance(said, dict) else {}
        call = self._find(piece, said)
        exact: dict[str, Any] = {
            name: value for name, value in piece.items() if name not in ("index", "id", "type", kind)
        }
        exact["index"] = call.number
        if not call.told:
            exact |= {"id": call.id, "type": kind}
        exact[kind] = call.exact_part(said, "input" if kind == "custom" else "arguments")
        call.told = True
        return exact

    def _find(self, piece: Mapping[str, Any], said: Mapping[str, Any]) -> _Call:
        """Return the call that a piece is of. Another id is another call, whatever its index."""
        place, given = piece.get("index"), piece.get("id")
        given = given if isinstance(given, str) and given else None
        if given is not None:
            call = next((call for call in self._calls if call.given == given), None)
        elif type(place) is int:
            call = self._places.get(place)
        else:
            call = self._calls[-1] if self._calls and not self._calls[-1].is_over(said) else None
        if call is None:
            call = self._add(given)
        if type(place) is int:
            self._places[place] = call
        return call

    def _add(self, given: str | None) -> _Call:
        name = given if given is not None and given not in self._taken else f"call_{new_id('call')[5:]}"
        self._taken.add(name)
        call = _Call(len(self._calls), given, name)
        self._calls.append(call)
        return call


class _Call:
    """A tool call that is being told."""

    __slots__ = ("_named", "_pieces", "given", "id", "number", "told")

    def __init__(self, number: int, given: str | None, name: str) -> None:
        self.number = number
        self.given = given
        self.id = name
        self.told = False
        self._named = False
        self._pieces: list[str] = []

    def is_over(self, said: Mapping[str, Any]) -> bool:
        """Tell whether a piece without index and id begins another call: it has a name, and this call is whole."""
        return bool(said.get("name")) and self._named and _is_json("".join(self._pieces))

    def exact_part(self, said: Mapping[str, Any], key: str) -> dict[str, Any]:
        """Return a piece of the function or tool that is called: the name once, and more of the `key`, a string."""
        text = said.get(key)
        if text is not None and not isinstance(text, str):
            text = json.dumps(text, ensure_ascii=False)
        part = {name: value for name, value in said.items() if name not in ("name", key)}
        if not self._named and (said.get("name") or not self.told):
            part = {"name": str(said.get("name") or ""), **part}
            self._named = bool(part["name"])
        self._pieces.append(text or "")
        return {**part, key: text or ""}


def _is_json(text: str) -> bool:
    try:
        orjson.loads(text or "{}")
    except orjson.JSONDecodeError:
        return False
    return True


def _exact_reason(choice: dict[str, Any], reason: Any) -> None:
    """Put OpenAI's word for why a choice ended, and keep the provider's own beside it.

    Raises:
        UpstreamError: The word is not known to mean that the answer is whole.
    """
    word = reason if isinstance(reason, str) else ""
    if word in _FINISH_REASONS:
        choice["finish_reason"] = word
        return
    ours = _SYNONYMS.get(word.lower())
    if ours is None:
        raise UpstreamError(f"The model's provider ended its answer with the reason {str(reason)[:100]!r}.")
    choice["finish_reason"] = ours
    choice.setdefault("native_finish_reason", reason)


def _exact_logprobs(logprobs: Any) -> dict[str, Any] | None:
    if not isinstance(logprobs, dict):
        return None
    return {"content": None, "refusal": None, **logprobs}


def _split_content(delta: dict[str, Any], content: Any) -> None:
    """Put the text of a list of parts in its place, and what was thought beside it."""
    parts = content if isinstance(content, list) else [content]
    text = "".join(_texts(parts, _TEXT))
    thought = "".join(_texts(parts, _THOUGHT))
    delta["content"] = text or None
    if thought:
        delta["reasoning_content"] = (delta.get("reasoning_content") or "") + thought


def _texts(parts: Sequence[Any], kinds: frozenset[str]) -> Iterator[str]:
    for part in parts:
        if isinstance(part, str) and kinds is _TEXT:
            yield part
        elif isinstance(part, dict) and part.get("type") in kinds:
            inner = part.get("text", part.get(str(part["type"])))
            if isinstance(inner, str):
                yield inner
            elif isinstance(inner, list):
                yield from _texts(inner, _TEXT)
