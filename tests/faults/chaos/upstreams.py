"""The models that clients ask for: which answer well, which fail and how, and the usage that each call reports.

Each model has a provider of its own, so that what one model's failures teach workers harms no other one.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.fakes.provider import (
    DONE,
    Behaviour,
    Call,
    Exchange,
    Provider,
    answer,
    chunk,
    connection_reset,
    drip,
    hang,
    html,
    raw,
    short_body,
    status,
    stream,
    usage_chunk,
    usage_of,
)
from tests.fakes.provider import words as words_of
from tests.faults.chaos.turns import pieces_of_call

Json = dict[str, Any]

CUT_OFF_AT = 16
"""The most tokens that a client asks for whose answer is to be cut off."""
TOOL: Json = {
    "type": "function",
    "name": "look",
    "description": "Looks something up.",
    "parameters": {"type": "object", "properties": {"query": {"type": "string"}, "part": {"type": "integer"}}},
    "strict": False,
}
"""The tool that clients of the Responses API have, as they offer it."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model, and the provider of the same name."""

    name: str
    kind: str = "openai"
    direct: bool = False
    """Calls go around the link that is broken on purpose."""
    fails: bool = False
    """The provider itself may fail."""
    long: bool = False
    """Its answers have thousands of words."""
    thoughtful: bool = False
    """It is silent for some seconds before the first word."""
    endless: bool = False
    """It does not answer before any deadline."""
    format: str = ""
    """The provider's, where it is not that of its kind."""
    options: str = ""

    @property
    def faultless(self) -> bool:
        """Whether no job of it may fail for its provider's sake, whatever is broken."""
        return self.direct and not self.fails


_PATIENT = "timeout = 60\nread_timeout = 15"
_IMPATIENT = "timeout = 3\nread_timeout = 1"

GOOD = (
    Model("good", direct=True, options=_PATIENT),
    Model("good-claude", "anthropic", direct=True, options=_PATIENT),
    Model("good-gemini", "gemini", direct=True, options=_PATIENT),
    Model("good-responses", format="responses", direct=True, options=_PATIENT),
    Model("thoughtful", direct=True, thoughtful=True, options=_PATIENT),
)
LONG = (Model("long", direct=True, long=True, options=_PATIENT),)
FAR = (Model("far", options=_PATIENT),)
FLAKY = (
    Model("flaky", fails=True, options=_PATIENT),
    Model("flaky-claude", "anthropic", fails=True, options=_PATIENT),
    Model("flaky-gemini", "gemini", fails=True, options=_PATIENT),
    Model("flaky-responses", format="responses", fails=True, options=_PATIENT),
)
HOPELESS = (
    Model("broken", fails=True, options=_PATIENT),
    Model("limited", fails=True, options=_PATIENT),
    Model("garbage", fails=True, options=_PATIENT),
    Model("reset", fails=True, options=_PATIENT),
    Model("refused", fails=True, options=_PATIENT),
    Model("hanging", fails=True, options=_IMPATIENT),
    Model("dripping", fails=True, options=_IMPATIENT),
)
LATE = (
    Model("narrow", direct=True, options=f"{_PATIENT}\nmax_concurrency = 1"),
    Model("endless", direct=True, endless=True, options="timeout = 60\nread_timeout = 60"),
)
"""Asked with short deadlines only: for the one a job waits its turn, and may do so in the queue."""

MODELS = {model.name: model for group in (GOOD, LONG, FAR, FLAKY, HOPELESS, LATE) for model in group}


def catalogue(provider_port: int, link_port: int) -> str:
    """Return a headrace.toml with all of them; those that are not direct are reached over a link."""
    sections = []
    for model in MODELS.values():
        port = provider_port if model.direct else link_port
        route = f'"{model.name}/{model.name}"'
        if model.format:
            route = f'{{ route = {route}, format = "{model.format}" }}'
        sections.append(f"""
[providers.{model.name}]
kind = "{model.kind}"
base_url = "http://127.0.0.1:{port}/v1"
api_key = "env:TESTS_PROVIDER_KEY"
connect_timeout = 2
{model.options}

[models."{model.name}"]
routes = [{route}]
input_price = 2.50
output_price = 10.00
""")
    return "".join(sections)


_LONG_WORDS = 2000


def _numbered(words: Sequence[str], number: int) -> str:
    """Return a text whose every word says which call it answers."""
    return " ".join(f"{word}#{number}" for word in words)


def _limit(body: Json) -> int | None:
    """Return the most tokens that a provider may answer with, in any format."""
    limits = {**body, **(body.get("generationConfig") or {})}
    names = ("max_completion_tokens", "max_tokens", "max_output_tokens", "maxOutputTokens")
    return next((limits[name] for name in names if limits.get(name)), None)


def _may_call(body: Json) -> bool:
    """Return whether a request, in any format, allows calls: some tools are named for earlier calls alone."""
    choices = json.dumps([body.get("tool_choice"), body.get("toolConfig")])
    return bool(body.get("tools")) and '"none"' not in choices.lower()


def _openai_calls(before: str, calls: Sequence[tuple[str, str, Json]], usage: Json) -> Behaviour:
    """Return an answer with tool calls in OpenAI's format: in a stream their arguments come by turns."""
    whole: list[Json] = [
        {"id": call_id, "type": "function", "function": {"name": name, "arguments": json.dumps(given)}}
        for call_id, name, given in calls
    ]
    begun = [
        chunk({"tool_calls": [{"index": index, **call, "function": {**call["function"], "arguments": ""}}]})
        for index, call in enumerate(whole)
    ]
    texts = [words_of(call["function"]["arguments"]) for call in whole]
    grown = [
        chunk({"tool_calls": [{"index": index, "function": {"arguments": text}}]})
        for turn in itertools.zip_longest(*texts)
        for index, text in enumerate(turn)
        if text is not None
    ]
    said = map(chunk, words_of(before) if before else ())

    async def behave(exchange: Exchange) -> None:
        if not exchange.call.streamed:
            message = {"content": before or None, "tool_calls": whole}
            await answer(before, usage=usage, message=message, finish="tool_calls")(exchange)
            return
        role = chunk({"role": "assistant", "content": ""})
        ended = [chunk(finish="tool_calls"), *([usage_chunk(usage)] if exchange.call.wants_usage else ())]
        await stream(role, *said, *begun, *grown, *ended, DONE)(exchange)

    return behave


class _Enough(Exception):  # noqa: N818  (no error: the script is over)
    """A stream has gone as far as it is to go."""


class _Unhurried(Exchange):
    """An exchange that pauses before each piece of a stream, and goes no further than some of them."""

    def __init__(self, exchange: Exchange, pause: float, pieces: int | None = None) -> None:
        super().__init__(exchange.call, exchange._writer)
        self._pause = pause
        self._left = pieces

    async def stream(self, data: bytes) -> None:
        if self._left is not None:
            if self._left == 0:
                raise _Enough
            self._left -= 1
        await asyncio.sleep(self._pause)
        await super().stream(data)


@dataclass
class Upstreams:
    """The fake provider's behaviour, and its own log of its answers."""

    chance: random.Random
    reported: dict[Call, tuple[int, int]] = field(default_factory=dict)
    """The tokens that the answer to a call says it used, prompt and completion: no two calls say the same."""
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    @classmethod
    def scripted(cls, provider: Provider, seed: int) -> Upstreams:
        """Have a provider answer for every model as the model's name says."""
        self = cls(random.Random(f"provider {seed}"))
        limited, broken = status(429, retry_after=1), status(500)
        failures = (limited, broken, connection_reset, self._half, self._half, short_body, html())
        for model in GOOD + LONG + FAR:
            provider.always(model.name, self._well)
        for model in FLAKY:
            provider.always(model.name, self._sometimes(failures))
        for name, behaviour in {
            "broken": broken,
            "limited": status(429),
            "garbage": raw(b"\x00{]"),
            "reset": connection_reset,
            "refused": status(400),
            "hanging": hang,
            "dripping": drip,
            "narrow": self._well,
            "endless": hang,
        }.items():
            provider.always(name, behaviour)
        return self

    def _answer(self, call: Call) -> Behaviour:
        """Return an echo of whose every word says which call it answers: no two are alike, as with a real model.

        With tools it is a call or two, if the last message is not what one found. It is cut off where the client says.
        """
        number = next(self._numbers)
        prompt, completion = 1000 + number, self.chance.randint(1, 100)
        self.reported[call] = (prompt, completion)
        usage = usage_of(prompt, completion)
        last = pieces_of_call(call)[-1]
        said = f"You said: {last[-1][max(0, last[-1].rfind('repeat ')) :]}"
        if _may_call(call.body) and last[0] == "user":
            return self._calls(call, number, said, usage)
        words = said.split(" ")
        if MODELS[call.model].long:
            words += ["and"] * _LONG_WORDS
        finish = "length" if _limit(call.body) == CUT_OFF_AT else "stop"
        return answer(_numbered(words, number), usage=usage, finish=finish)

    def _calls(self, call: Call, number: int, said: str, usage: Json) -> Behaviour:
        """Return an answer that calls the tool, sometimes after some words or thoughts."""
        name, text = TOOL["name"], _numbered(said.split(" "), number)
        before = _numbered(["Let", "me", "look."], number) if self.chance.random() < 0.5 else ""
        calls = [
            (f"call_{number}_{index}", name, {"query": f"{text} ", "part": index})
            for index in range(self.chance.randint(1, 2))
        ]
        if call.kind == "openai":
            return _openai_calls(before, calls, usage)
        thoughts = words_of(_numbered(["Hm,", "so."], number)) if self.chance.random() < 0.5 else ()
        return answer(before, usage=usage, finish="tool_calls", calls=calls, thoughts=thoughts)

    async def _well(self, exchange: Exchange) -> None:
        """Answer in a second or two: all of it after a while, or word by word."""
        model = MODELS[exchange.call.model]
        if model.thoughtful:
            await asyncio.sleep(self.chance.uniform(2, 6))
        if exchange.call.streamed:
            pause = 0 if model.long else self.chance.uniform(0, 0.15)
            await self._answer(exchange.call)(_Unhurried(exchange, pause))
        else:
            await asyncio.sleep(self.chance.uniform(0, 2))
            await self._answer(exchange.call)(exchange)

    async def _half(self, exchange: Exchange) -> None:
        """Break off: with the end of the body, or with the connection's."""
        if not exchange.call.streamed:
            await short_body(exchange)
            exchange.keep_alive = False
            return
        try:
            await self._answer(exchange.call)(_Unhurried(exchange, 0.02, pieces=self.chance.randint(1, 6)))
        except _Enough:
            if self.chance.random() < 0.5:
                await exchange.close_stream()
            else:
                exchange.reset()

    def _sometimes(self, failures: Sequence[Behaviour]) -> Behaviour:
        async def behave(exchange: Exchange) -> None:
            behaviour = self._well if self.chance.random() < 0.6 else self.chance.choice(failures)
            await behaviour(exchange)

        return behave
