"""Clients of all sorts, who note what they were told. Each request has a mark of its own, which its answer repeats."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.e2e.jobs import FINAL
from tests.provider import (
    Behaviour,
    Exchange,
    Provider,
    answer,
    connection_reset,
    drip,
    hang,
    html,
    raw,
    short_body,
    status,
    stream,
)

Json = dict[str, Any]

_HOPELESS = ("fake-500", "fake-429", "fake-garbage", "fake-reset", "impatient-hang", "impatient-drip", "fake-refused")
_PATIENCE = httpx.Timeout(70, connect=3)
_AGAIN_SECONDS = 0.3


@dataclass(slots=True)
class Reading:
    """What one subscriber was told of a job: `(event id, name, data)` in order, over all its connections."""

    job_id: str
    mark: str
    events: list[tuple[str | None, str, Json]] = field(default_factory=list)
    connections: int = 0


@dataclass(slots=True)
class Notes:
    """What all clients saw."""

    accepted: dict[str, str] = field(default_factory=dict)
    """The mark of each job that somebody was told of."""
    answers: list[tuple[str, str]] = field(default_factory=list)
    """Marks, and the whole texts that came for them."""
    readings: list[Reading] = field(default_factory=list)
    batches: list[tuple[str, int]] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    """What no client should ever be told."""
    keyed: dict[str, set[str]] = field(default_factory=dict)
    """The jobs that each Idempotency-Key stood for."""


def _sometimes(chance: random.Random, good: Behaviour, *others: Behaviour) -> Behaviour:
    async def behave(exchange: Exchange) -> None:
        await (good if chance.random() < 0.5 else chance.choice(others))(exchange)

    return behave


def _slowly(chance: random.Random) -> Behaviour:
    async def behave(exchange: Exchange) -> None:
        await asyncio.sleep(chance.uniform(0, 2))
        await answer()(exchange)

    return behave


def script(provider: Provider, seed: int) -> None:
    """Have the provider fail in every way, each under a model's name."""
    chance = random.Random(f"provider {seed}")
    limited, broken = status(429, retry_after=1), status(500)
    half = stream({"choices": [{"index": 0, "delta": {"role": "assistant", "content": "half of"}}]})
    good = _slowly(chance)
    provider.always("fake-good", good)
    provider.always("fake-flaky", _sometimes(chance, good, limited, broken, connection_reset, half, short_body, html()))
    provider.always("fake-500", broken)
    provider.always("fake-429", status(429))
    provider.always("fake-garbage", raw(b"\x00{]"))
    provider.always("fake-reset", connection_reset)
    provider.always("fake-refused", status(400))
    provider.always("impatient-hang", hang)
    provider.always("impatient-drip", drip)


class Load:
    """Clients that ask until they are told to stop."""

    def __init__(self, seed: int, urls: tuple[str, str], keys: dict[str, str]) -> None:
        """`keys` are of accounts, by name."""
        self.notes = Notes()
        self._chance = random.Random(f"load {seed}")
        self._urls = urls
        self._keys = keys
        self._count = 0
        self._readers: set[asyncio.Task[None]] = set()

    async def run(self, clients: int, stop: asyncio.Event) -> None:
        """Ask with so many clients at a time; returns once the last has what it waits for."""
        limits = httpx.Limits(max_connections=500, max_keepalive_connections=50)
        async with httpx.AsyncClient(timeout=_PATIENCE, limits=limits) as http:
            await asyncio.gather(*(self._client(http, stop) for _ in range(clients)))
            await asyncio.gather(*self._readers)

    async def _client(self, http: httpx.AsyncClient, stop: asyncio.Event) -> None:
        kinds = (self._whole, self._streamed, self._polled, self._watched, self._cancelled, self._batch)
        while not stop.is_set():
            account = self._chance.choice(list(self._keys))
            self._count += 1
            mark = f"<{account}-{self._count:06d}>"
            [kind] = self._chance.choices(kinds, weights=[5, 5, 4, 4, 1, 0.3])
            try:
                await kind(http, account, mark)
            except (httpx.TransportError, json.JSONDecodeError) as error:
                self.notes.statuses[type(error).__name__] += 1
            await asyncio.sleep(self._chance.uniform(0, 0.3))

    # -- one request --------------------------------------------------------------------------------------------------

    def _model(self) -> str:
        [group] = self._chance.choices(("good", "flaky", "hopeless"), weights=[6, 3, 1])
        return self._chance.choice(_HOPELESS) if group == "hopeless" else f"fake-{group}"

    def _body(self, mark: str, **fields: Any) -> Json:
        text = f"repeat {mark} " + "and so on " * self._chance.randrange(8) + mark
        return {"model": self._model(), "messages": [{"role": "user", "content": text}], **fields}

    def _url(self, path: str) -> str:
        return f"{self._chance.choice(self._urls)}/api/v1{path}"

    def _headers(self, account: str, mark: str | None = None) -> dict[str, str]:
        headers = {"authorization": f"Bearer {self._keys[account]}"}
        return headers if mark is None else {**headers, "idempotency-key": mark}

    def _note(self, response: httpx.Response, mark: str) -> bool:
        """Note an answer's status; returns whether it is a good one."""
        code = response.status_code
        self.notes.statuses[str(code)] += 1
        if "x-headrace-job" in response.headers:
            self.notes.accepted[response.headers["x-headrace-job"]] = mark
        if code == 503 and not response.headers.get("retry-after"):
            self.notes.wrong.append(f"{mark}: 503 without retry-after")
        if code >= 500 and code not in {502, 503, 504} and "worker_lost" not in response.text:
            self.notes.wrong.append(f"{mark}: {code} {response.text[:200]}")
        return code < 300

    async def _until_answered(self, http: httpx.AsyncClient, account: str, mark: str, body: Json) -> httpx.Response:
        """Ask again and again with the same key, until there is an answer to the request itself."""
        while True:
            try:
                response = await http.post(
                    self._url("/chat/completions"), json=body, headers=self._headers(account, mark)
                )
            except httpx.TransportError as error:
                self.notes.statuses[type(error).__name__] += 1
                await asyncio.sleep(_AGAIN_SECONDS)
                continue
            self._note(response, mark)
            if "x-headrace-job" in response.headers:
                self.notes.keyed.setdefault(mark, set()).add(response.headers["x-headrace-job"])
            if response.status_code != 503:
                return response
            await asyncio.sleep(_AGAIN_SECONDS)

    async def _whole(self, http: httpx.AsyncClient, account: str, mark: str) -> None:
        body = self._body(mark)
        if self._chance.random() < 0.5:
            response = await self._until_answered(http, account, mark, body)
        else:
            response = await http.post(self._url("/chat/completions"), json=body, headers=self._headers(account))
            self._note(response, mark)
        if response.status_code == 200:
            self.notes.answers.append((mark, response.json()["choices"][0]["message"]["content"]))

    async def _streamed(self, http: httpx.AsyncClient, account: str, mark: str) -> None:
        text = ""
        async with http.stream(
            "POST",
            self._url("/chat/completions"),
            json=self._body(mark, stream=True),
            headers=self._headers(account),
        ) as response:
            if response.status_code != 200:
                await response.aread()
            if not self._note(response, mark):
                return
            async for line in response.aiter_lines():
                if line == "data: [DONE]":
                    self.notes.answers.append((mark, text))
                    return
                if line.startswith("data: "):
                    event = json.loads(line[6:])
                    if "error" in event:
                        self.notes.statuses["error in a stream"] += 1
                        return
                    text += "".join(choice["delta"].get("content") or "" for choice in event["choices"])
        self.notes.statuses["stream cut"] += 1

    async def _submit(self, http: httpx.AsyncClient, account: str, mark: str) -> str | None:
        body = self._body(mark, background=True)
        response = await self._until_answered(http, account, mark, body)
        if response.status_code != 202:
            return None
        job_id: str = response.json()["id"]
        return job_id

    async def _ended(self, http: httpx.AsyncClient, account: str, job_id: str) -> Json:
        """Poll until a job has ended."""
        while True:
            try:
                response = await http.get(
                    self._url(f"/jobs/{job_id}"), params={"wait": 10}, headers=self._headers(account)
                )
                self._note(response, job_id)
                if response.status_code == 200 and response.json()["status"] in FINAL:
                    found: Json = response.json()
                    return found
                if response.status_code == 404:
                    self.notes.wrong.append(f"{job_id}: an accepted job is 404")
                    return {}
            except httpx.TransportError as error:
                self.notes.statuses[type(error).__name__] += 1
            await asyncio.sleep(_AGAIN_SECONDS)

    async def _polled(self, http: httpx.AsyncClient, account: str, mark: str) -> None:
        job_id = await self._submit(http, account, mark)
        if job_id is not None:
            job = await self._ended(http, account, job_id)
            if job.get("status") == "completed":
                self.notes.answers.append((mark, job["result"]["choices"][0]["message"]["content"]))

    async def _watched(self, http: httpx.AsyncClient, account: str, mark: str) -> None:
        job_id = await self._submit(http, account, mark)
        if job_id is None:
            return
        for _ in range(self._chance.randint(1, 3)):
            reading = Reading(job_id, mark)
            self.notes.readings.append(reading)
            task = asyncio.create_task(self._watch(http, account, reading))
            self._readers.add(task)
            task.add_done_callback(self._readers.discard)

    async def _watch(self, http: httpx.AsyncClient, account: str, reading: Reading) -> None:
        """Read a job's events to the last, coming back with the last id whenever cut off."""
        while not reading.events or reading.events[-1][1].removeprefix("job.") not in FINAL:
            headers = self._headers(account)
            ids = [event_id for event_id, *_ in reading.events if event_id is not None]
            if ids:
                headers["last-event-id"] = ids[-1]
            reading.connections += 1
            try:
                url = self._url(f"/jobs/{reading.job_id}/events")
                async with http.stream("GET", url, headers=headers) as response:
                    if response.status_code != 200:
                        await response.aread()
                        self._note(response, reading.mark)
                        if response.status_code in {400, 404}:
                            self.notes.wrong.append(f"{reading.job_id}: {response.status_code} {response.text[:200]}")
                            return
                    else:
                        await _read(response, reading)
            except httpx.TransportError as error:
                self.notes.statuses[type(error).__name__] += 1
            await asyncio.sleep(_AGAIN_SECONDS)

    async def _cancelled(self, http: httpx.AsyncClient, account: str, mark: str) -> None:
        job_id = await self._submit(http, account, mark)
        if job_id is None:
            return
        await asyncio.sleep(self._chance.uniform(0, 2))
        response = await http.post(self._url(f"/jobs/{job_id}/cancel"), headers=self._headers(account))
        self._note(response, mark)

    async def _batch(self, http: httpx.AsyncClient, account: str, mark: str) -> None:
        count = self._chance.randint(3, 30)
        requests = [{"custom_id": f"r{n}", "body": self._body(f"{mark[:-1]}.{n}>")} for n in range(count)]
        body = {"requests": requests, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        response = await http.post(self._url("/batches"), json=body, headers=self._headers(account, mark))
        if self._note(response, mark):
            self.notes.batches.append((response.json()["id"], count))


async def _read(response: httpx.Response, reading: Reading) -> None:
    event: dict[str, str] = {}
    async for line in response.aiter_lines():
        if line.startswith(":"):
            continue
        if line:
            name, _, value = line.partition(": ")
            event[name] = value
        else:
            if "data" in event:
                reading.events.append((event.get("id"), event.get("event", ""), json.loads(event["data"])))
            event = {}
