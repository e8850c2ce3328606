"""What all clients do: they make requests with marks, send them, and note each answer."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Collection
from enum import Enum, auto
from typing import Any

import httpx

from tests.faults.chaos.notes import Ask, Cut, Notes, Refusal
from tests.faults.chaos.upstreams import FAR, FLAKY, GOOD, HOPELESS, LONG, Model

_UNKNOWN = "outcome_unknown"
"""The code of a 504 after which the client cannot know what became of its request: it sends it again."""
AWAY = "service_unavailable"
"""The code of a 503 that does not depend on the request: the client sends it again."""

_AGAIN_SECONDS = 0.3
# Seconds a client waits for a provider whose circuit opens again and again.
_HOPELESS_SECONDS = 20
_FLAKY_SECONDS = 45


class Outcome(Enum):
    """How a stream went."""

    OVER = auto()
    CUT = auto()
    BROKEN = auto()
    """The stream ended with an error; the same request may succeed next time, or always fail."""


class GaveUpError(Exception):
    """The client asks no more: the answer is noted already."""


class Asking:
    """Clients of some accounts, who share what they note."""

    def __init__(self, seed: int, urls: tuple[str, ...], keys: dict[str, str], hook: str, notes: Notes) -> None:
        """`keys` has each account's key by its name; webhooks go to `hook`."""
        self.notes = notes
        self._chance = random.Random(f"load {seed}")
        self._urls = urls
        self._keys = keys
        self._hook = hook
        self._count = 0
        self._readers: set[asyncio.Task[None]] = set()

    # -- requests -----------------------------------------------------------------------------------------------------

    def _mark(self, account: str) -> str:
        self._count += 1
        return f"<{account}-{self._count:06d}>"

    def _model(self) -> Model:
        [group] = self._chance.choices((GOOD, LONG, FAR, FLAKY, HOPELESS), weights=[6, 0.5, 1, 3, 1])
        return self._chance.choice(group)

    def _ask(self, account: str, model: Model | None = None, **fields: Any) -> Ask:
        """Make a request for a chat completion; `fields` are its body's."""
        ask = self._request(self._mark(account), account, model or self._model(), **fields)
        return self._noted(self._adorned(ask))

    def _adorned(self, ask: Ask) -> Ask:
        """Give a request, by chance, fields that requests of each format may have."""
        if self._chance.random() < 0.3:
            ask.body["service_tier"] = self._chance.choice(("priority", "default", "flex"))
        if self._chance.random() < 0.1 and not ask.kept:
            ask.body["store"] = False
        if self._chance.random() < (0.4 if ask.background else 0.1):
            ask.body["webhook"] = self._hook
        return ask

    def _request(self, mark: str, account: str, model: Model, **fields: Any) -> Ask:
        messages = [{"role": "user", "content": self._text(mark)}]
        return Ask(mark, account, {"model": model.name, "messages": messages, **fields})

    def _text(self, mark: str) -> str:
        return f"repeat {mark} " + "and so on " * self._chance.randrange(8) + mark

    def _noted(self, ask: Ask) -> Ask:
        """Note a request before it is sent."""
        if ask.model.fails:
            ask.body["timeout"] = _FLAKY_SECONDS if ask.model in FLAKY else _HOPELESS_SECONDS
        return self.notes.asks.setdefault(ask.mark, ask)

    def _url(self, path: str) -> str:
        return f"{self._chance.choice(self._urls)}/api/v1{path}"

    def _headers(self, account: str, key: str | None = None) -> dict[str, str]:
        headers = {"authorization": f"Bearer {self._keys[account]}"}
        return headers if key is None else {**headers, "idempotency-key": key}

    # -- answers ------------------------------------------------------------------------------------------------------

    def _told(self, response: httpx.Response, what: str, *others: int) -> bool:
        """Note an answer, which is to be good, 503, or one of `others`; returns whether it is good."""
        notes, code = self.notes, response.status_code
        notes.statuses[str(code)] += 1
        notes.read(response.text, what)
        if code == 503 and not response.headers.get("retry-after"):
            notes.wrong.append(f"{what}: 503 without retry-after")
        if code >= 300 and code != 503 and code not in others:
            notes.wrong.append(f"{what}: {code} {response.text[:200]}")
        return code < 300

    def _answered(self, response: httpx.Response, ask: Ask) -> bool:
        """Note the answer to a request, whose errors are looked at when all is known; returns whether it is good."""
        good = self._told(response, ask.mark, *range(400, 600))
        self._accepted(response, ask)
        if not good:
            error = response.json()["error"]
            self.notes.refusals.append(Refusal(ask.mark, response.status_code, error["code"], error["message"]))
            ask.refused += error["code"] == AWAY
        return good

    def _accepted(self, response: httpx.Response, ask: Ask) -> None:
        """Note the job that an answer names, if it names one."""
        job_id = response.headers.get("x-headrace-job")
        if job_id is not None:
            self.notes.accepted[job_id] = ask.mark
            if ask.keyed:
                self.notes.keyed.setdefault(ask.mark, set()).add(job_id)

    @contextlib.asynccontextmanager
    async def _open(
        self, http: httpx.AsyncClient, method: str, path: str, mark: str, **options: Any
    ) -> AsyncIterator[httpx.Response]:
        """Send a request and give its answer to read; a connection that breaks is noted."""
        began, answering = time.time(), False
        try:
            async with http.stream(method, self._url(path), **options) as response:
                answering = True
                yield response
        except httpx.TransportError as error:
            self.notes.statuses[type(error).__name__] += 1
            self.notes.cuts.append(Cut(mark, began, time.time(), answering))
            raise

    async def _again(self) -> None:
        await asyncio.sleep(_AGAIN_SECONDS)

    # -- sending ------------------------------------------------------------------------------------------------------

    def _send(self, http: httpx.AsyncClient, ask: Ask) -> contextlib.AbstractAsyncContextManager[httpx.Response]:
        ask.sent += 1
        headers = self._headers(ask.account, ask.mark if ask.keyed else None)
        return self._open(http, "POST", ask.path, ask.mark, json=ask.body, headers=headers)

    async def _post(self, http: httpx.AsyncClient, ask: Ask) -> httpx.Response:
        """Send a request; with a key again and again, until there is an answer to the request itself."""
        while True:
            try:
                async with self._send(http, ask) as response:
                    await response.aread()
                if self._answered(response, ask) or not ask.keyed or self.notes.refusals[-1].code != AWAY:
                    return response
            except httpx.TransportError:
                if not ask.keyed:
                    raise
            await self._again()

    async def _insist(
        self,
        http: httpx.AsyncClient,
        method: str,
        account: str,
        path: str,
        *,
        good: Collection[int],
        key: str | None = None,
        body: Any = None,
    ) -> httpx.Response:
        """Ask for something of an account's until there is an answer with one of these statuses.

        Raises:
            GaveUpError: The answer has another one, and is neither 503 nor 504 `outcome_unknown`.
        """
        while True:
            with contextlib.suppress(httpx.TransportError):
                async with self._open(
                    http, method, path, account, headers=self._headers(account, key), json=body
                ) as response:
                    await response.aread()
                self._told(response, f"{method} {path}", *good, 504)
                if response.status_code in good:
                    return response
                if response.status_code == 504 and response.json()["error"]["code"] != _UNKNOWN:
                    self.notes.wrong.append(f"{method} {path}: 504 {response.text[:200]}")
                if response.status_code not in (503, 504):
                    raise GaveUpError
            await self._again()

    def _read_along(self, reading: Any) -> None:
        """Have a reader read while the client goes on."""
        task = asyncio.create_task(reading)
        self._readers.add(task)
        task.add_done_callback(self._readers.discard)
