"""Clients of the Responses API: whole, streamed and background responses."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import httpx

from headrace.ids import job_id_of_response
from headrace.ids import response_id as response_id_of
from tests.faults.chaos.asking import AWAY, Asking, Outcome
from tests.faults.chaos.notes import Ask, Json, Refusal, ResponseReading
from tests.faults.chaos.turns import pieces_of_items, text_of
from tests.faults.chaos.upstreams import CUT_OFF_AT, LATE, LONG, TOOL, Model

Kind = Callable[[httpx.AsyncClient, str], Awaitable[None]]

FINAL = frozenset({"completed", "incomplete", "failed", "cancelled"})
ANSWERED = frozenset({"completed", "incomplete"})
_POLL_SECONDS = 0.5
# Seconds after which a reader may disconnect by itself, to come back.
_IMPATIENT_SECONDS = 2.0


class RespondingClients(Asking):
    """They ask in every way, come back to what they lost, and note all that they read."""

    def _responses_kinds(self) -> dict[Kind, float]:
        return {
            self._response_whole: 1.5,
            self._response_streamed: 2.5,
            self._response_left: 0.7,
            self._response_polled: 2,
            self._response_watched: 4,
            self._response_cancelled: 1.5,
            self._response_deleted: 0.7,
            self._response_late: 0.7,
            self._responses_stranger: 0.7,
        }

    # -- requests -----------------------------------------------------------------------------------------------------

    def _respond(self, account: str, model: Model | None = None, **options: Any) -> Ask:
        """Make a request with a new mark; `options` are those of `_response_request`."""
        ask = self._response_request(self._mark(account), account, model or self._model(), **options)
        return self._noted(self._adorned(ask))

    def _response_request(
        self,
        mark: str,
        account: str,
        model: Model,
        *,
        calls: Sequence[Json] = (),
        tools: bool | None = None,
        **fields: Any,
    ) -> Ask:
        """Make a request for a response; `fields` are its body's. Outputs of `calls` come first in its input."""
        chance = self._chance
        items: list[Json] = [_output(call, mark) for call in calls]
        if not items or chance.random() < 0.5:
            items += self._messages(self._text(mark))
        only = items[0].get("content") if len(items) == 1 else None
        said = only if isinstance(only, str) and chance.random() < 0.5 else items
        ask = Ask(mark, account, {"model": model.name, "input": said, **fields}, own=pieces_of_items(items))
        ask.kept = "store" in fields
        if tools or (tools is None and model not in LONG and chance.random() < 0.3):
            ask.body["tools"] = [TOOL]
        elif chance.random() < 0.1:
            ask.body["max_output_tokens"] = CUT_OFF_AT
        if chance.random() < 0.2:
            ask.body["instructions"] = f"Be brief, this is {mark[1:-1]}."
            ask.own = [("system", ask.body["instructions"]), *ask.own]
        return ask

    def _messages(self, text: str) -> list[Json]:
        """Return a message in one of its forms, or two of them."""
        forms: tuple[Json, ...] = (
            {"role": "user", "content": text},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]},
        )
        return [self._chance.choice(forms) for _ in range(2 if self._chance.random() < 0.1 else 1)]

    # -- answers ------------------------------------------------------------------------------------------------------

    async def _answer(self, http: httpx.AsyncClient, ask: Ask) -> Json | None:
        """Send a request and return its final response, or None if the client does not learn it."""
        response: Json | None = None
        if ask.body.get("stream"):
            reading = await self._read_new(http, ask)
            if reading is not None and ask.background:
                await self._follow(http, reading)
            if reading is not None:
                response = reading.final
                if response is None and ask.kept:
                    response = await self._poll_response(http, ask, reading.response_id)
        else:
            answer = await self._post(http, ask)
            response = answer.json() if answer.status_code == 200 else None
            if response is not None and ask.background:
                response = await self._poll_response(http, ask, response["id"])
        if response is not None:
            self._take(ask, response, "the client that asked")
        return response

    def _take(self, ask: Ask, response: Json, who: str) -> None:
        """Note a final response."""
        self.notes.response(response, who)
        if response["status"] in ANSWERED:
            ask.answers.append(text_of(response))

    async def _read_new(self, http: httpx.AsyncClient, ask: Ask) -> ResponseReading | None:
        """Send a request for a stream and read it; with a key again and again. Return the last reading that began."""
        broken, reading = 0, None
        while True:
            outcome = Outcome.CUT
            with contextlib.suppress(httpx.TransportError):
                async with self._send(http, ask) as response:
                    if response.status_code == 200:
                        reading = self._begin(ask, response)
                        await self._read_response(response, reading)
                        outcome = self._outcome(ask, reading)
                    else:
                        await response.aread()
                        self._answered(response, ask)
                        outcome = Outcome.CUT if self.notes.refusals[-1].code == AWAY else Outcome.OVER
            broken += outcome is Outcome.BROKEN
            resumed = reading is not None and ask.background
            if outcome is Outcome.OVER or not ask.keyed or broken == 2 or resumed:
                return reading
            await self._again()

    def _begin(self, ask: Ask, response: httpx.Response) -> ResponseReading:
        self._accepted(response, ask)
        self.notes.statuses["200, a stream"] += 1
        job_id = response.headers["x-headrace-job"]
        reading = ResponseReading(ask.mark, response_id_of(job_id), foreground=not ask.background)
        self.notes.response_readings.append(reading)
        return reading

    def _outcome(self, ask: Ask, reading: ResponseReading) -> Outcome:
        if reading.final is not None:
            return Outcome.OVER
        if reading.error is None:
            self.notes.statuses["stream cut"] += 1
            return Outcome.CUT
        self.notes.statuses["error in a stream"] += 1
        self.notes.refusals.append(Refusal(ask.mark, 200, reading.error["code"], reading.error["message"]))
        return Outcome.CUT if reading.error["code"] == AWAY else Outcome.BROKEN

    async def _read_response(self, response: httpx.Response, reading: ResponseReading) -> None:
        """Read the events of one connection."""
        reading.connections += 1
        reading.error = None
        lines: list[str] = []
        async for line in response.aiter_lines():
            if line and not line.startswith(":"):
                lines.append(line)
            elif lines and not line:
                event, lines = "\n".join(lines), []
                self.notes.read(event, reading.response_id)
                reading.take(event)

    async def _follow(self, http: httpx.AsyncClient, reading: ResponseReading) -> None:
        """Read a response's events to the last, coming back with the last number whenever the connection is lost.

        Now and then the reader itself disconnects.
        """
        account = self.notes.asks[reading.mark].account
        while reading.final is None:
            headers, path = self._headers(account), f"/responses/{reading.response_id}?stream=true"
            if reading.last >= 0 and self._chance.random() < 0.2:
                headers["last-event-id"] = str(reading.last)
            elif reading.last >= 0:
                path += f"&starting_after={reading.last}"
            patience = self._chance.uniform(0, _IMPATIENT_SECONDS) if self._chance.random() < 0.5 else None
            with contextlib.suppress(httpx.TransportError, TimeoutError):
                async with (
                    asyncio.timeout(patience),
                    self._open(http, "GET", path, reading.mark, headers=headers) as response,
                ):
                    if response.status_code == 200:
                        await self._read_response(response, reading)
                    else:
                        await response.aread()
                        self._told(response, path)
                        if response.status_code != 503:
                            return
            if reading.final is None:
                await self._again()
        self.notes.response(reading.final, "a reader")

    async def _poll_response(self, http: httpx.AsyncClient, ask: Ask, response_id: str) -> Json:
        """Ask for a response until it is final."""
        while True:
            answer = await self._insist(http, "GET", ask.account, f"/responses/{response_id}", good={200})
            response: Json = answer.json()
            if response["id"] != response_id:
                self.notes.wrong.append(f"{response_id}: its client was told {response['id']}")
            if response["status"] in FINAL:
                return response
            await asyncio.sleep(_POLL_SECONDS)

    # -- clients ------------------------------------------------------------------------------------------------------

    async def _response_whole(self, http: httpx.AsyncClient, account: str) -> None:
        ask = self._respond(account)
        ask.keyed = self._chance.random() < 0.5
        await self._answer(http, ask)

    async def _response_streamed(self, http: httpx.AsyncClient, account: str) -> None:
        """Read a stream to its end, and find the same response afterwards."""
        ask = self._respond(account, stream=True)
        ask.keyed = self._chance.random() < 0.5
        final = await self._answer(http, ask)
        if final is not None and ask.body.get("store") is not False:
            self.notes.response(await self._poll_response(http, ask, final["id"]), "the client, once more")

    async def _response_left(self, http: httpx.AsyncClient, account: str) -> None:
        """Ask for a stream, and disconnect in the middle."""
        ask = self._respond(account, stream=True)
        async with asyncio.timeout(self._chance.uniform(0, 3)):
            await self._answer(http, ask)

    async def _response_polled(self, http: httpx.AsyncClient, account: str) -> None:
        ask = self._respond(account, background=True)
        ask.keyed = True
        await self._answer(http, ask)

    async def _response_late(self, http: httpx.AsyncClient, account: str) -> None:
        """Ask with a deadline that the answer may miss."""
        ask = self._respond(account, self._chance.choice(LATE), background=True)
        ask.keyed, ask.body["timeout"] = True, self._chance.uniform(1, 6)
        await self._answer(http, ask)

    async def _response_watched(self, http: httpx.AsyncClient, account: str) -> None:
        """Have several readers: from the start, from where the first one is, and from any number before that."""
        ask = self._respond(account, background=True, stream=True)
        ask.keyed = True
        first = await self._read_some(http, ask)
        if first is None:
            return
        for _ in range(self._chance.randint(0, 2)):
            # Behind the last event of all there is nothing to read.
            known = first.last - (first.final is not None)
            after = self._chance.randint(-1, known) if self._chance.random() < 0.6 else -1
            reading = ResponseReading(ask.mark, first.response_id, after=after)
            self.notes.response_readings.append(reading)
            self._read_along(self._follow(http, reading))
        self._read_along(self._follow(http, first))

    async def _read_some(self, http: httpx.AsyncClient, ask: Ask) -> ResponseReading | None:
        """Begin to read a background stream; the client may disconnect."""
        if self._chance.random() < 0.5:
            return await self._read_new(http, ask)
        before = len(self.notes.response_readings)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._chance.uniform(0.5, 4)):
                return await self._read_new(http, ask)
        begun = [reading for reading in self.notes.response_readings[before:] if reading.mark == ask.mark]
        # A client that has no id yet sends the request again.
        return begun[-1] if begun else await self._read_new(http, ask)

    async def _response_cancelled(self, http: httpx.AsyncClient, account: str) -> None:
        """Cancel in any state; a response that ended otherwise before says so with 400."""
        ask = self._respond(account, background=True)
        ask.keyed = True
        submitted = await self._post(http, ask)
        if submitted.status_code != 200:
            return
        response_id = submitted.json()["id"]
        if self._chance.random() < 0.5:
            reading = ResponseReading(ask.mark, response_id)
            self.notes.response_readings.append(reading)
            self._read_along(self._follow(http, reading))
        await asyncio.sleep(self._chance.uniform(0, 4))
        self.notes.cancelled.add(job_id_of_response(response_id))
        path = f"/responses/{response_id}"
        answer = await self._insist(http, "POST", account, f"{path}/cancel", good={200, 400})
        response = await self._poll_response(http, ask, response_id)
        self._take(ask, response, "a canceller")
        told = answer.json().get("status", "refused")
        # What was still running then may end in either way.
        if told != "in_progress" and (told == "cancelled") != (response["status"] == "cancelled"):
            self.notes.wrong.append(f"{response_id}: {response['status']}, and a canceller was told {answer.text}")

    async def _response_deleted(self, http: httpx.AsyncClient, account: str) -> None:
        """Delete a response that has ended; afterwards every request for it gets 404."""
        ask = self._respond(account, background=True, store=True)
        ask.keyed = True
        response = await self._answer(http, ask)
        if response is not None:
            await self._delete(http, account, response["id"])

    async def _delete(self, http: httpx.AsyncClient, account: str, response_id: str) -> None:
        # 404 means that an earlier DELETE erased it and its answer was lost.
        await self._insist(http, "DELETE", account, f"/responses/{response_id}", good={200, 404})
        self.notes.deleted.add(job_id_of_response(response_id))
        for path in ("", "?stream=true", "/input_items"):
            await self._insist(http, "GET", account, f"/responses/{response_id}{path}", good={404})
        await self._refused(http, account, response_id)

    async def _refused(self, http: httpx.AsyncClient, account: str, response_id: str) -> None:
        """Be refused with 400 for a response that the account does not have."""
        body = {"model": "good", "input": "repeat this", "previous_response_id": response_id}
        answer = await self._insist(http, "POST", account, "/responses", good={400}, body=body)
        if answer.json()["error"]["code"] != "previous_response_not_found":
            self.notes.wrong.append(f"{account}: after {response_id}, which it does not have: {answer.text}")

    # -- other accounts -----------------------------------------------------------------------------------------------

    async def _responses_stranger(self, http: httpx.AsyncClient, account: str) -> None:
        """Ask for another account's responses on every path, and to go on from one."""
        foreign = [
            response_id_of(job_id)
            for job_id, mark in self.notes.accepted.items()
            if self.notes.asks[mark].account != account and self.notes.asks[mark].format == "responses"
        ]
        if not foreign:
            return
        response_id = self._chance.choice(foreign)
        path = f"/responses/{response_id}"
        paths = [("GET", path), ("GET", f"{path}?stream=true&starting_after=1"), ("GET", f"{path}/input_items")]
        for method, asked in [*paths, ("POST", f"{path}/cancel"), ("DELETE", path)]:
            await self._insist(http, method, account, asked, good={404})
        await self._refused(http, account, response_id)


def _output(call: Json, mark: str) -> Json:
    """Return an item that says what a call found."""
    return {"type": "function_call_output", "call_id": call["call_id"], "output": f"repeat {mark} as {call['name']}"}
