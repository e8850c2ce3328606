"""One exchange with a provider: its request goes out, and its answer, in any format, becomes one chat completion.

Readers and the job get that answer in the format of the job's client.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce
from operator import add
from typing import Any

from headrace.catalogue.models import Route
from headrace.errors import UpstreamError, UpstreamTooLargeError
from headrace.formats.chat.fold import Fold, chunks_of
from headrace.formats.chat.normaliser import Normaliser
from headrace.formats.chat.texts import Texts
from headrace.formats.chat.tool_calls import call_ids
from headrace.formats.chat.usage import TokenUsage, estimate_usage, parse_usage
from headrace.formats.registry import FORMATS, Relay, Renderer
from headrace.jobs.records import ClaimedJob
from headrace.providers.client import Allowance, ProviderClient
from headrace.providers.sse import EventReader
from headrace.runtime.offload import offloaded
from headrace.telemetry.traceparent import trace_headers
from worker.chunks import Chunk, ChunkReader, shallow

MOST_HELD = 10_000
"""Chunks that an answer may have before its first text, over all of its choices."""

# Calls of one exchange that are under way at once, at most: others need connections as well.
_MOST_AT_ONCE = 8

PassOn = Callable[[Sequence[bytes]], None]
"""Takes the lines for readers, in order."""


class Exchange:
    """A job's request to a provider, and what the provider has answered so far.

    Where a format has one choice an answer, `n` choices take `n` calls, few at once, whose answers are merged.
    """

    __slots__ = (
        "_allowance", "_client", "_folds", "_format", "_held", "_job", "_model", "_normalisers", "_pass_on", "_relay",
        "_renderer", "_request", "_route", "_silent_chunks", "_stream", "_whole", "answer", "at_once", "calls", "made",
        "secret", "trace_context",
    )  # fmt: skip

    def __init__(
        self,
        client: ProviderClient,
        job: ClaimedJob,
        route: Route,
        request: Mapping[str, Any],
        *,
        renderer: Renderer,
        pass_on: PassOn,
        relay: Relay | None = None,
    ) -> None:
        """Take the chat request of a job. No provider is called yet: `complete` does so.

        With a `relay`, which is the renderer too, the provider gets the client's own request.
        """
        self.secret = route.provider.secret()
        self.trace_context = job.trace_context
        """The trace context that the provider gets."""
        self._client = client
        self._job = job
        self._route = route
        self._request = request
        self._pass_on = pass_on
        self._format = FORMATS[route.format]
        self._renderer = renderer
        self._relay = relay
        # A client may come to follow a background job; only audio cannot always be streamed. A line of a batch is read
        # once its answer is complete.
        watched = job.background and job.batch_id is None and not request.get("audio")
        self._stream = job.streamed or watched
        self.calls = 1 if self._format.MANY_CHOICES else request.get("n") or 1
        """Calls that the exchange takes."""
        self.at_once = min(self.calls, _MOST_AT_ONCE)
        """Calls that are under way at once, at most."""
        self.made = 0
        """Calls that have begun."""
        self._folds = [Fold() for _ in range(self.calls)]
        taken = call_ids(request)
        self._normalisers = [Normaliser(taken=taken) for _ in range(self.calls)]
        self._held: list[bytes] = []
        self._silent_chunks = 0
        self._allowance = Allowance()
        self._model = route.model
        self._whole: dict[str, Any] | None = None
        self.answer: dict[str, Any] = {}
        """What the job stores, once the exchange is complete."""

    @property
    def started(self) -> bool:
        """Whether the model has answered with any text yet."""
        begun = self._relay is not None and self._relay.begun
        return begun or self._whole is not None or any(fold.started for fold in self._folds)

    @property
    def model(self) -> str:
        """The model that answered, as its provider names it; the model of the route until then."""
        said = self._model if self._whole is None else self._whole["model"]
        return said if isinstance(said, str) else self._route.model

    @property
    def streamed(self) -> bool:
        """Whether the provider is asked for a stream."""
        return self._stream

    @property
    def completion(self) -> dict[str, Any]:
        """The `chat.completion`; empty until it is complete."""
        return self._whole or {}

    @property
    def usage(self) -> TokenUsage:
        """The usage up to now, as the provider reported it, else as estimated from the text."""
        if self._whole is not None:
            return parse_usage(self._whole.get("usage")) or estimate_usage(self._request, self._text())
        begun = [fold for fold in self._folds if fold.started or fold.usage is not None] or self._folds[:1]
        usages = [parse_usage(fold.usage) or estimate_usage(self._request, fold.text) for fold in begun]
        return reduce(add, usages)

    async def complete(self) -> dict[str, Any]:
        """Return the `chat.completion`, once its chunks have been passed on.

        Raises:
            UpstreamError: The provider failed.
            InvalidRequestError: The format cannot carry a part of the request.
        """
        if len(self._folds) == 1:
            completion = await self._call(0)
        else:
            completion = await self._call_each()
        self._whole = completion | {"model": completion.get("model") or self._route.model}
        if self._stream:
            lines, self.answer = self._renderer.end(self._whole)
            self._held += lines
            self._release()
        else:
            self.answer = self._renderer.whole(self._whole)
        return self._whole

    async def _call_each(self) -> dict[str, Any]:
        answers: list[dict[str, Any]] = [{} for _ in self._folds]
        left = iter(range(self.calls))

        async def call_in_turn() -> None:
            for index in left:
                answers[index] = await self._call(index)

        try:
            async with asyncio.TaskGroup() as runners:
                for _ in range(self.at_once):
                    runners.create_task(call_in_turn())
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        choices = [
            choice | {"index": index} for index, answer in enumerate(answers) for choice in answer.get("choices") or ()
        ]
        return answers[0] | {"choices": choices, "usage": _total([answer.get("usage") for answer in answers])}

    async def _call(self, number: int) -> dict[str, Any]:
        self.made += 1
        route, form = self._route, self._format
        if self._relay is not None:
            render: Callable[..., bytes] = self._relay.render_request
        else:
            render = partial(
                form.render_request,
                self._request,
                output_limit=route.output_limit,
                limit_parameter=route.provider.limit_parameter,
            )
        action = "" if self._relay is None else self._relay.action
        body = await offloaded(self._job.size, partial(render, model=route.model, stream=self._stream))
        call = self._client.call(
            route.provider,
            url=form.render_url(route.provider.base_url, model=route.model, stream=self._stream) + action,
            headers=form.render_headers(self.secret) | trace_headers(self.trace_context),
            body=body,
            allowance=self._allowance,
        )
        del body, render  # the answer may take minutes
        async with call as answer:
            if await answer.is_stream():
                events = EventReader()
                chunks = ChunkReader((self._relay or self._format).parse_stream(), self._normalisers[number])
                await answer.pass_on(partial(self._read, number, events, chunks))
                self._end_stream(number, events, chunks)
            else:
                whole = (self._relay or form).parse_completion(shallow(await answer.read()))
                whole = self._normalisers[number].completion(whole)
                if not self._stream:
                    # If another call fails, what this one used is still counted.
                    for chunk in chunks_of(whole) if self.calls > 1 else ():
                        self._folds[number].add(chunk)
                    return whole
                self._take(number, chunks_of(whole))
        return self._folds[number].completion(id=self._job.id, created=self._job.created, model=self._model)

    def _read(self, number: int, events: EventReader, chunks: ChunkReader, piece: bytes) -> bool:
        """Take the next bytes of a stream, and return whether the provider has marked its end."""
        self._take(number, chunks.read(events.feed(piece)))
        return chunks.done

    def _end_stream(self, number: int, events: EventReader, chunks: ChunkReader) -> None:
        if not chunks.done:
            self._take(number, chunks.read(events.close()))
        fold = self._folds[number]
        if chunks.done and fold.started:
            self._take(number, self._normalisers[number].close())
        if not fold.finished:
            raise UpstreamError("The model's provider broke off its answer.")

    def _take(self, number: int, chunks: Sequence[Chunk | Texts]) -> None:
        """Fold chunks of a call and pass them on.

        Chunks are held until the first text comes: no reader sees an attempt that fails before.
        """
        fold = self._folds[number]
        shown: list[Chunk | Texts] = []
        for chunk in chunks:
            if isinstance(chunk, Texts):
                fold.add_texts(chunk)
            else:
                if number:
                    for choice in chunk["choices"]:
                        choice["index"] = number
                self._model = chunk.setdefault("model", self._route.model)
                fold.add(chunk)
                if "usage" in chunk:
                    usage = chunk.pop("usage")
                    if usage is not None and not chunk["choices"] and chunk.get("moderation") is None:
                        continue  # whether the client gets a usage chunk is its own choice
            shown.append(chunk)
        # Without `_stream` the provider streams though it was asked for a whole answer, and no reader follows.
        lines = self._renderer.render(shown) if self._stream else []
        if fold.started and not self._held:
            if lines:
                self._pass_on(lines)
            return
        self._held += lines
        if fold.started or fold.finished or (self._relay is not None and self._relay.begun):
            self._release()
        else:
            self._silent_chunks += len(shown)
            if max(self._silent_chunks, len(self._held)) > MOST_HELD:
                raise UpstreamTooLargeError("The model's provider sent too many events without any text.")

    def _text(self) -> str:
        if any(fold.started for fold in self._folds):
            return "".join(fold.text for fold in self._folds)
        fold = Fold()
        for chunk in chunks_of(self.completion):
            fold.add(chunk)
        return fold.text

    def _release(self) -> None:
        if self._held:
            lines, self._held = self._held, []
            self._pass_on(lines)


def _total(usages: Sequence[dict[str, Any] | None]) -> dict[str, Any] | None:
    """Return the sum of usage objects, or None where one is missing."""
    total: dict[str, Any] = {}
    for usage in usages:
        if usage is None:
            return None
        _add(total, usage)
    return total


def _add(total: dict[str, Any], usage: Mapping[str, Any]) -> None:
    for name, value in usage.items():
        if isinstance(value, Mapping):
            _add(total.setdefault(name, {}), value)
        elif type(value) is int:
            total[name] = total.get(name, 0) + value
