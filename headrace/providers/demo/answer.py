"""What the demo models answer to an OpenAI request, whole or in chunks. Pure, but for the random ids of tool calls.

The model calls the first tool that it is offered, with made-up arguments that fit the tool's schema, and answers a
tool's result with text. It keeps to `response_format`, `n`, `stop`, the limit of tokens, `logprobs` and `tool_choice`.
With `parallel_tool_calls: true` it calls every tool once, and one without others twice. A token is a word, or 16
characters of one.
"""

from __future__ import annotations

import itertools
import json
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from headrace.errors import shorten
from headrace.providers.demo.example import NoExampleError, example_of

_ABOUT = (
    "This answer came from the demo model, through the same path as any other: the API committed your job to Postgres,"
    " Celery woke a worker over Redis, the worker called this little provider over HTTP, and each word reached you as a"
    " delta."
)
# Characters of the client's text that an answer repeats.
_LONGEST_QUOTE = 500
_TOKEN = re.compile(r"\S{1,16}\s*|\s+")
_TOKENS_AN_IMAGE = 85
# Calls of one answer.
_MOST_CALLS = 8
_OTHER_WORDS = tuple("abcdefghijklmnopqrstuvwxyz")


class RefusedError(ValueError):
    """The request asks for what the demo model cannot make up. `param` is where."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param


@dataclass(frozen=True, slots=True)
class _Tool:
    """A tool that may be called; `place` is its kind in a request: `function`, `custom`, or `function_call` of old."""

    kind: str
    name: str
    parameters: Any
    place: str


@dataclass(slots=True)
class _Call:
    tool: _Tool
    id: str
    tokens: list[str]

    def render(self, text: str) -> dict[str, Any]:
        """Return the call with this much of its arguments."""
        value = {"name": self.tool.name, ("input" if self.tool.kind == "custom" else "arguments"): text}
        return {"id": self.id, "type": self.tool.kind, self.tool.kind: value}


@dataclass(slots=True)
class _Choice:
    index: int
    finish_reason: str
    tokens: list[str] = field(default_factory=list)
    calls: list[_Call] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer, of which both forms can be had. `usage` is OpenAI's."""

    usage: dict[str, Any]
    _choices: Sequence[_Choice]
    _top_logprobs: int | None

    @property
    def longest(self) -> int:
        """How many tokens the longest choice has, calls included."""
        return max(len(choice.tokens) + sum(len(call.tokens) for call in choice.calls) for choice in self._choices)

    def whole(self) -> list[dict[str, Any]]:
        """Return the choices of a `chat.completion`."""
        return [
            {
                "index": choice.index,
                "message": _message(choice),
                "logprobs": self._logprobs(choice.tokens),
                "finish_reason": choice.finish_reason,
            }
            for choice in self._choices
        ]

    def rounds(self) -> Iterator[list[dict[str, Any]]]:
        """Yield the choices of chunks, one for each choice that is not at its end, a token each."""
        for together in itertools.zip_longest(*(self._deltas(choice) for choice in self._choices)):
            yield [piece for piece in together if piece is not None]

    def _deltas(self, choice: _Choice) -> Iterator[dict[str, Any]]:
        def piece(
            delta: dict[str, Any], tokens: Sequence[str] = (), finish_reason: str | None = None
        ) -> dict[str, Any]:
            logprobs = self._logprobs(tokens)
            return {"index": choice.index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}

        yield piece({"role": "assistant", "content": None if choice.calls else "", "refusal": None})
        for token in choice.tokens:
            yield piece({"content": token}, [token])
        for number, call in enumerate(choice.calls):
            if call.tool.place == "functions":
                yield piece({"function_call": call.render("")["function"]})
                for token in call.tokens:
                    yield piece({"function_call": {"arguments": token}})
                continue
            yield piece({"tool_calls": [{"index": number, **call.render("")}]})
            text = "input" if call.tool.kind == "custom" else "arguments"
            for token in call.tokens:
                yield piece({"tool_calls": [{"index": number, call.tool.kind: {text: token}}]})
        yield piece({}, finish_reason=choice.finish_reason)

    def _logprobs(self, tokens: Sequence[str]) -> dict[str, Any] | None:
        if self._top_logprobs is None or not tokens:
            return None
        return {"content": [_logprob(token, self._top_logprobs) for token in tokens], "refusal": None}


def answer(request: Mapping[str, Any]) -> Answer:
    """Return what the demo model answers to an OpenAI request that is valid.

    Raises:
        RefusedError: No value was found that fits a schema of the request, or `tool_choice` names no tool.
    """
    choices = [_choice(request, index) for index in range(request.get("n") or 1)]
    limit = request.get("max_completion_tokens") or request.get("max_tokens")
    if limit is not None:
        for choice in choices:
            _cut(choice, limit)
    prompt = sum(_prompt_tokens(message) for message in request["messages"])
    written = sum(len(choice.tokens) + sum(len(call.tokens) + 1 for call in choice.calls) for choice in choices)
    usage = {
        "prompt_tokens": prompt,
        "completion_tokens": written,
        "total_tokens": prompt + written,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }
    return Answer(usage, choices, (request.get("top_logprobs") or 0) if request.get("logprobs") else None)


def _choice(request: Mapping[str, Any], index: int) -> _Choice:
    tools = _called(request)
    if tools:
        reason = "function_call" if tools[0].place == "functions" else "tool_calls"
        calls = [_call(tool, index * len(tools) + number) for number, tool in enumerate(tools)]
        return _Choice(index, reason, calls=calls)
    text = _formatted(request, index)
    stops = request.get("stop") or ()
    for stop in [stops] if isinstance(stops, str) else stops:
        text = text.split(stop, 1)[0] if stop else text
    return _Choice(index, "stop", tokens=_TOKEN.findall(text))


def _cut(choice: _Choice, limit: int) -> None:
    """Leave the first `limit` tokens of a choice."""
    for tokens in (choice.tokens, *(call.tokens for call in choice.calls)):
        if len(tokens) > limit:
            del tokens[limit:]
            choice.finish_reason = "length"
        limit -= len(tokens)


def _message(choice: _Choice) -> dict[str, Any]:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": None if choice.calls else "".join(choice.tokens),
        "refusal": None,
        "annotations": [],
    }
    calls = [call.render("".join(call.tokens)) for call in choice.calls]
    if calls and choice.calls[0].tool.place == "functions":
        message["function_call"] = calls[0]["function"]
    elif calls:
        message["tool_calls"] = calls
    return message


# -- tools ------------------------------------------------------------------------------------------------------------


def _called(request: Mapping[str, Any]) -> list[_Tool]:
    """Return the tools that are called now: none after a tool's result, unless one must be."""
    offered, must = _offered(request)
    if not offered or (not must and request["messages"][-1].get("role") in ("tool", "function")):
        return []
    if request.get("parallel_tool_calls") is True and offered[0].place == "tools" and not isinstance(must, str):
        return (offered * 2 if len(offered) == 1 else offered)[:_MOST_CALLS]
    return offered[:1]


def _offered(request: Mapping[str, Any]) -> tuple[list[_Tool], bool | str]:
    """Return the tools that may be called, and whether one must be, or the name of the one that must."""
    tools = [
        _Tool(tool["type"], tool[tool["type"]]["name"], tool[tool["type"]].get("parameters"), "tools")
        for tool in request.get("tools") or ()
        if tool["type"] in ("function", "custom")
    ]
    choice = request.get("tool_choice") or "auto"
    if not tools:
        tools = [
            _Tool("function", one["name"], one.get("parameters"), "functions") for one in request.get("functions") or ()
        ]
        choice = request.get("function_call") or "auto"
    if isinstance(choice, str):
        return ([] if choice == "none" else tools), choice in ("required", "any")
    if choice.get("type") == "allowed_tools":
        allowed = choice["allowed_tools"]
        names = [tool.get(str(tool.get("type")), {}).get("name") for tool in allowed["tools"]]
        return [tool for tool in tools if tool.name in names], allowed["mode"] == "required"
    name = choice[choice["type"]]["name"] if "type" in choice else choice["name"]
    chosen = [tool for tool in tools if tool.name == name]
    if not chosen:
        raise RefusedError("tool_choice", f"Invalid 'tool_choice': no tool named '{shorten(name)}' is offered.")
    return chosen[:1], str(name)


def _call(tool: _Tool, nth: int) -> _Call:
    call_id = f"call_{secrets.token_hex(12)}"
    if tool.kind == "custom":
        return _Call(tool, call_id, _TOKEN.findall(f"an example of what {tool.name} takes"))
    schema = tool.parameters or {"type": "object"}
    value = _example({"type": "object", **schema}, nth, f"the parameters of '{shorten(tool.name)}'", tool.place)
    return _Call(tool, call_id, _TOKEN.findall(_json(value)))


# -- text -------------------------------------------------------------------------------------------------------------


def _formatted(request: Mapping[str, Any], index: int) -> str:
    shape = request.get("response_format") or {"type": "text"}
    if shape["type"] == "json_schema":
        schema = shape["json_schema"].get("schema") or {"type": "object"}
        return _json(_example(schema, index, "the schema", "response_format"))
    text = _said(request["messages"])
    if index:
        text = f"Once more, for choice {index}: {text}"
    return _json({"answer": text}) if shape["type"] == "json_object" else text


def _said(messages: Sequence[Mapping[str, Any]]) -> str:
    last = messages[-1]
    if last.get("role") in ("tool", "function"):
        names = {
            call["id"]: call[call["type"]]["name"] for message in messages for call in message.get("tool_calls") or ()
        }
        results = reversed(
            list(itertools.takewhile(lambda message: message.get("role") == last["role"], reversed(messages)))
        )
        told = (
            f"{names.get(message.get('tool_call_id'), message.get('name') or 'The tool')} returned: {_text(message)}"
            for message in results
        )
        return f"{' '.join(told)} {_ABOUT}"
    images = sum(_images(message) for message in messages)
    seen = "" if not images else " You sent an image." if images == 1 else f" You sent {images} images."
    return f"You said: {_text(last)}{seen} {_ABOUT}"


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content") or ""
    if not isinstance(content, str):
        content = " ".join(_texts(content)).strip()
    return str(content[:_LONGEST_QUOTE])


def _texts(parts: Sequence[Mapping[str, Any]]) -> list[str]:
    return [part["text"] for part in parts if part.get("type") == "text"]


def _images(message: Mapping[str, Any]) -> int:
    content = message.get("content")
    return sum(part.get("type") == "image_url" for part in content) if isinstance(content, list) else 0


def _prompt_tokens(message: Mapping[str, Any]) -> int:
    content = message.get("content") or ""
    parts = [content] if isinstance(content, str) else _texts(content)
    return 3 + sum(len(part.split()) for part in parts) + _TOKENS_AN_IMAGE * _images(message)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _example(schema: Any, nth: int, what: str, param: str) -> Any:
    try:
        return example_of(schema, nth)
    except NoExampleError as error:
        raise RefusedError(param, f"The demo model has no example for {what}: {error}.") from error


def _logprob(token: str, top: int) -> dict[str, Any]:
    """Return a token's log probability, and those of the `top` likeliest tokens in its place, itself among them."""
    likeliest = [token, *(word for word in _OTHER_WORDS if word != token.strip())][:top]
    rated = [
        {"token": one, "logprob": -0.1 if rank == 0 else -2.5 - rank / 4, "bytes": list(one.encode())}
        for rank, one in enumerate(likeliest or [token])
    ]
    return {**rated[0], "top_logprobs": rated[:top]}
