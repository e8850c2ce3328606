"""Clients of all kinds, which note each answer."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Collection

import httpx

from tests.e2e.jobs import FINAL
from tests.faults.chaos.asking import AWAY, GaveUpError, Outcome
from tests.faults.chaos.conversations import TalkingClients
from tests.faults.chaos.notes import Ask, Json, Reading, Refusal, Stream
from tests.faults.chaos.responses import Kind
from tests.faults.chaos.upstreams import LATE

_PATIENCE = httpx.Timeout(70, connect=3)
# Seconds in which the loop closes the sockets of a client that is closed; those it does not are reported as errors.
_CLOSING_SECONDS = 0.25
# Clients of each kind that ask in any run, on a machine that is busy too.
_LEAST_OF_KIND = 3
_MOST_TRIES = 3
"""How often a client without a key asks that is told to come back: as often as OpenAI's own."""


class Load(TalkingClients):
    """Clients that ask until they are told to stop."""

    async def run(self, clients: int, stop: threading.Event) -> None:
        """Ask with this many clients at a time, also of each rare kind; returns once the last has its answer."""
        kinds = self._kinds()
        first = self._chance.sample(list(kinds) * _LEAST_OF_KIND, len(kinds) * _LEAST_OF_KIND)
        limits = httpx.Limits(max_connections=500, max_keepalive_connections=50)
        async with httpx.AsyncClient(timeout=_PATIENCE, limits=limits) as http:
            await asyncio.gather(*(self._client(http, first, kinds, stop) for _ in range(clients)))
            while self._readers:
                await asyncio.gather(*self._readers)
        await asyncio.sleep(_CLOSING_SECONDS)

    def _kinds(self) -> dict[Kind, float]:
        return {
            self._whole: 5.0,
            self._streamed: 5,
            self._persistent: 2,
            self._left: 1,
            self._polled: 4,
            self._watched: 4,
            self._cancelled: 1,
            self._deleted: 1,
            self._late: 1.5,
            self._batch: 0.3,
            self._usage: 0.7,
            self._stranger: 1,
            **self._responses_kinds(),
            **self._talking_kinds(),
        }

    async def _client(
        self, http: httpx.AsyncClient, first: list[Kind], kinds: dict[Kind, float], stop: threading.Event
    ) -> None:
        while first or not stop.is_set():
            account = self._chance.choice(list(self._keys))
            [kind] = [first.pop()] if first else self._chance.choices(list(kinds), list(kinds.values()))
            try:
                await kind(http, account)
            except (GaveUpError, httpx.TransportError, TimeoutError):
                pass
            except (ValueError, KeyError) as error:
                self.notes.wrong.append(f"{kind.__name__}: an answer that makes no sense: {error!r}")
            await asyncio.sleep(self._chance.uniform(0, 0.3))

    # -- chat completions ----------------------------------------------------------------------------------------------

    async def _whole(self, http: httpx.AsyncClient, account: str) -> None:
        ask = self._ask(account)
        ask.keyed = self._chance.random() < 0.5
        response = await self._post(http, ask)
        if response.status_code == 200:
            ask.answers.append(response.json()["choices"][0]["message"]["content"])

    async def _streamed(self, http: httpx.AsyncClient, account: str) -> None:
        ask = self._ask(account, stream=True)
        ask.keyed = self._chance.random() < 0.5
        broken = 0
        while True:
            outcome = Outcome.CUT
            with contextlib.suppress(httpx.TransportError):
                outcome = await self._stream(http, ask)
            broken += outcome is Outcome.BROKEN
            if outcome is Outcome.OVER or not ask.keyed or broken == 2:
                return
            await self._again()

    async def _stream(self, http: httpx.AsyncClient, ask: Ask) -> Outcome:
        async with self._send(http, ask) as response:
            return await self._read_stream(response, ask)

    async def _read_stream(self, response: httpx.Response, ask: Ask) -> Outcome:
        if response.status_code != 200:
            await response.aread()
            self._answered(response, ask)
            return Outcome.CUT if self.notes.refusals[-1].code == AWAY else Outcome.OVER
        self._accepted(response, ask)
        self.notes.statuses["200, a stream"] += 1
        told = Stream(ask.mark)
        self.notes.streams.append(told)
        async for line in response.aiter_lines():
            self.notes.read(line, ask.mark)
            if line.startswith("data: "):
                told.take(line[6:])
        if told.done:
            ask.answers.append(told.text)
            return Outcome.OVER
        if told.error is not None:
            self.notes.statuses["error in a stream"] += 1
            code = told.error["code"]
            self.notes.refusals.append(Refusal(ask.mark, 200, code, told.error["message"]))
            return Outcome.CUT if code == AWAY else Outcome.BROKEN
        self.notes.statuses["stream cut"] += 1
        return Outcome.CUT

    async def _persistent(self, http: httpx.AsyncClient, account: str) -> None:
        """Ask without a key, and again when told to, as OpenAI's client does: a refused request never runs."""
        ask = self._ask(account, background=self._chance.random() < 0.5)
        response = await self._post(http, ask)
        while ask.refused == ask.sent < _MOST_TRIES:
            await self._again()
            response = await self._post(http, ask)
        if response.status_code == 202:
            await self._poll(http, ask, response.json()["id"])
        elif response.status_code == 200:
            ask.answers.append(response.json()["choices"][0]["message"]["content"])

    async def _left(self, http: httpx.AsyncClient, account: str) -> None:
        """Ask for a stream, and disconnect in the middle."""
        ask = self._ask(account, stream=True)
        async with asyncio.timeout(self._chance.uniform(0, 3)):
            await self._stream(http, ask)

    async def _submit(self, http: httpx.AsyncClient, ask: Ask) -> str | None:
        ask.keyed = True
        response = await self._post(http, ask)
        if response.status_code != 202:
            return None
        job_id: str = response.json()["id"]
        return job_id

    async def _ask_of_job(
        self, http: httpx.AsyncClient, method: str, account: str, job_id: str, path: str = "", *, good: Collection[int]
    ) -> httpx.Response:
        return await self._insist(http, method, account, f"/jobs/{job_id}{path}", good=good)

    async def _ended(self, http: httpx.AsyncClient, account: str, job_id: str) -> Json:
        """Poll until a job has ended."""
        while True:
            response = await self._ask_of_job(http, "GET", account, job_id, "?wait=10", good={200})
            job: Json = response.json()
            self.notes.end(job, "a poller")
            if job["status"] in FINAL:
                return job

    async def _polled(self, http: httpx.AsyncClient, account: str) -> None:
        ask = self._ask(account, background=True)
        job_id = await self._submit(http, ask)
        if job_id is not None:
            await self._poll(http, ask, job_id)

    async def _poll(self, http: httpx.AsyncClient, ask: Ask, job_id: str) -> None:
        job = await self._ended(http, ask.account, job_id)
        if job["status"] == "completed":
            ask.answers.append(job["result"]["choices"][0]["message"]["content"])

    async def _late(self, http: httpx.AsyncClient, account: str) -> None:
        """Ask with a deadline that the answer may miss."""
        ask = self._ask(account, self._chance.choice(LATE), background=self._chance.random() < 0.7)
        ask.body["timeout"] = self._chance.uniform(1, 6)
        if not ask.background:
            ask.keyed = True
            await self._post(http, ask)
        elif (job_id := await self._submit(http, ask)) is not None:
            await self._poll(http, ask, job_id)

    async def _watched(self, http: httpx.AsyncClient, account: str) -> None:
        ask = self._ask(account, background=True)
        job_id = await self._submit(http, ask)
        if job_id is None:
            return
        for _ in range(self._chance.randint(1, 3)):
            reading = Reading(job_id, ask.mark)
            self.notes.readings.append(reading)
            self._read_along(self._watch(http, account, reading))

    async def _watch(self, http: httpx.AsyncClient, account: str, reading: Reading) -> None:
        """Read a job's events to the last, coming back with the last id whenever cut off."""
        while not reading.events or reading.events[-1][1].removeprefix("job.") not in FINAL:
            headers = self._headers(account)
            ids = [event_id for event_id, *_ in reading.events if event_id is not None]
            if ids:
                headers["last-event-id"] = ids[-1]
            reading.connections += 1
            path = f"/jobs/{reading.job_id}/events"
            with contextlib.suppress(httpx.TransportError):
                async with self._open(http, "GET", path, reading.mark, headers=headers) as response:
                    if response.status_code == 200:
                        await self._read(response, reading)
                    else:
                        await response.aread()
                        self._told(response, reading.job_id)
                        if response.status_code < 500:
                            return
            await self._again()

    async def _read(self, response: httpx.Response, reading: Reading) -> None:
        event: dict[str, str] = {}
        async for line in response.aiter_lines():
            if line.startswith(":"):
                continue
            if line:
                name, _, value = line.partition(": ")
                event[name] = value
                continue
            if "data" in event:
                self.notes.read(event["data"], reading.job_id)
                name, data = event.get("event", ""), json.loads(event["data"])
                reading.events.append((event.get("id"), name, data))
                if name.removeprefix("job.") in FINAL:
                    self.notes.end(data, "a reader")
            event = {}

    async def _cancelled(self, http: httpx.AsyncClient, account: str) -> None:
        job_id = await self._submit(http, self._ask(account, background=True))
        if job_id is None:
            return
        await asyncio.sleep(self._chance.uniform(0, 2))
        self.notes.cancelled.add(job_id)
        response = await self._ask_of_job(http, "POST", account, job_id, "/cancel", good={200})
        self.notes.end(response.json(), "a canceller")

    async def _deleted(self, http: httpx.AsyncClient, account: str) -> None:
        """Erase a job that has ended; afterwards every request for it gets 404."""
        ask = self._ask(account, background=True)
        job_id = await self._submit(http, ask)
        if job_id is None:
            return
        await self._poll(http, ask, job_id)
        # 404 means that an earlier DELETE erased the job and its answer was lost.
        await self._ask_of_job(http, "DELETE", account, job_id, good={200, 404})
        self.notes.deleted.add(job_id)
        for path in ("", "/events", "/webhook-deliveries"):
            await self._ask_of_job(http, "GET", account, job_id, path, good={404})

    async def _stranger(self, http: httpx.AsyncClient, account: str) -> None:
        """Ask for another account's jobs and batches on every path."""
        foreign = [job_id for job_id, mark in self.notes.accepted.items() if self.notes.asks[mark].account != account]
        batches = [batch_id for batch_id, (owner, *_) in self.notes.batches.items() if owner != account]
        if not foreign:
            return
        job_id = self._chance.choice(foreign)
        completion = f"/chat/completions/{job_id.replace('job_', 'chatcmpl-')}"
        requests = [("GET", completion), ("GET", f"{completion}/messages"), ("POST", f"/jobs/{job_id}/cancel")]
        requests += [("GET", f"/jobs/{job_id}{path}") for path in ("", "/events", "/webhook-deliveries")]
        requests += [("DELETE", f"/jobs/{job_id}")]
        if batches:
            batch = f"/batches/{self._chance.choice(batches)}"
            requests += [("GET", batch), ("POST", f"{batch}/cancel"), ("GET", f"{batch}/webhook-deliveries")]
        for method, path in self._chance.sample(requests, 3):
            async with self._open(http, method, path, account, headers=self._headers(account)) as response:
                await response.aread()
            unknown = () if method == "GET" else (504,)  # its process ended before it could look
            if self._told(response, f"{account}, of another's {method} {path}", 404, *unknown):
                self.notes.wrong.append(f"{account}: {method} {path} is another's, and answers")

    async def _usage(self, http: httpx.AsyncClient, account: str) -> None:
        parameters = {
            "start": int(time.time()) - 3600,
            "bucket": self._chance.choice(("minute", "hour", "day", "month")),
            "group_by": self._chance.choice(("model", "provider", "tier", "batch", "model,tier")),
            "latency": self._chance.choice(("true", "false")),
            "format": self._chance.choice(("json", "csv")),
        }
        async with self._open(
            http, "GET", "/usage", account, params=parameters, headers=self._headers(account)
        ) as response:
            await response.aread()
        self._told(response, "usage")

    async def _batch(self, http: httpx.AsyncClient, account: str) -> None:
        """Submit a batch with a key, again and again until it is accepted."""
        mark, count = self._mark(account), self._chance.randint(3, 30)
        path, request = self._chance.choice(
            (("/v1/chat/completions", self._request), ("/v1/responses", self._response_request))
        )
        requests = []
        for number in range(count):
            ask = self._noted(request(f"{mark[:-1]}.{number}>", account, self._model()))
            ask.line = True
            requests.append({"custom_id": f"r{number}", "body": ask.body})
        hook = self._hook if self._chance.random() < 0.5 else None
        body: Json = {"requests": requests, "endpoint": path, "completion_window": "24h"}
        if hook is not None:
            body["webhook"] = hook
        while True:
            with contextlib.suppress(httpx.TransportError):
                async with self._open(
                    http, "POST", "/batches", mark, json=body, headers=self._headers(account, mark)
                ) as response:
                    await response.aread()
                if self._told(response, mark):
                    self.notes.batches[response.json()["id"]] = (account, count, hook)
                    self.notes.keyed.setdefault(mark, set()).add(response.json()["id"])
                if response.status_code != 503:
                    return
            await self._again()
