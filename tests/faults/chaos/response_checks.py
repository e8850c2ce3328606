"""Invariants of responses: their events, the chains that they make, and the conversations that they are in."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from psycopg.rows import DictRow

from headrace.ids import job_id_of_response
from headrace.ids import response_id as response_id_of
from tests.fakes.provider import Call
from tests.faults.chaos.notes import Ask, Json, Notes, ResponseReading, marks_in, own_mark
from tests.faults.chaos.response_events import EventLog
from tests.faults.chaos.told import Told
from tests.faults.chaos.turns import Piece, joined, pieces_of_call, pieces_of_items, without_ids

_STATES = {
    "completed": {"completed"},
    "incomplete": {"completed"},
    "failed": {"failed", "expired"},
    "cancelled": {"cancelled"},
}


class ResponseChecks:
    """Looks at every response that a run left."""

    def __init__(
        self,
        jobs: Mapping[str, DictRow],
        asks: Mapping[str, Ask],
        calls: Mapping[str, Sequence[Call]],
        notes: Notes,
        told: Told,
        *,
        counts: Counter[str],
        wrong: Callable[[str], None],
    ) -> None:
        """Take the rows and the requests by job, and the calls to providers by mark."""
        self._jobs = jobs
        self._asks = {job_id: ask for job_id, ask in asks.items() if ask.format == "responses"}
        self._calls = calls
        self._notes = notes
        self._told = told
        self._counts = counts
        self._wrong = wrong

    def check(self) -> None:
        """Check all there is."""
        for problem in self._told.wrong:
            self._wrong(problem)
        self._check_ends()
        for response_id in self._told.responses:
            self._check_replay(response_id)
            self._check_input(response_id)
        for reading in self._notes.response_readings:
            self._check_reading(reading)
        for conversation_id in self._notes.talks:
            self._check_conversation(conversation_id)
        for ask in self._asks.values():
            if ask.conversation is None:
                self._check_context(ask)

    # -- ends ---------------------------------------------------------------------------------------------------------

    def _check_ends(self) -> None:
        """Each response has ended as its clients were told, and is the stored one."""
        for response_id, status, who in self._notes.response_ends:
            self._counts[f"responses: ends told to {who}"] += 1
            job = self._jobs.get(job_id_of_response(response_id))
            if job is None or job["state"] not in _STATES[status]:
                self._wrong(f"{response_id}: {job and job['state']}, and {who} was told {status}")
        for response_id, response in dict(self._notes.finals).items():  # a client may still add one
            job = self._jobs.get(job_id_of_response(response_id))
            if job is not None and job["response"] is not None and json.loads(job["response"]) != response:
                self._wrong(f"{response_id}: clients were told {response}, and it is {job['response']}")
            stored = self._told.responses.get(response_id, response)
            if stored != response:
                self._wrong(f"{response_id}: clients were told {response}, and at last {stored}")
        for job_id, ask in self._asks.items():
            kept = ask.body.get("store") is not False and self._jobs[job_id]["deleted_at"] is None
            if kept and job_id in self._notes.accepted and response_id_of(job_id) not in self._told.responses:
                self._wrong(f"{job_id}: it has no response any more")

    # -- events -------------------------------------------------------------------------------------------------------

    def _check_replay(self, response_id: str) -> None:
        """All events are in order, and end with the response."""
        log = self._read(response_id, self._told.replays[response_id])
        self._counts["responses: replays of all events"] += 1
        self._counts["… events replayed"] += len(self._told.replays[response_id])
        self._counts["… items in them"] += len(log.items)
        response = self._told.responses[response_id]
        if log.final != response:
            self._wrong(f"{response_id}: its events end with {log.final}, and it is {response}")
        job = self._jobs[job_id_of_response(response_id)]
        if job["state"] == "completed":
            self._counts["… items that lost attempts left"] += len(log.left)
            if log.left and job["attempt"] == 1:
                self._wrong(f"{response_id}: items of lost attempts, and it had one: {log.left}")

    def _check_input(self, response_id: str) -> None:
        """The input items are those of the context, and the request's own."""
        ask = self._asks[job_id_of_response(response_id)]
        if response_id not in self._told.inputs or ask.conversation is not None:
            return
        own = [piece for piece in ask.own if piece[0] != "system"]
        self._counts["responses: lists of input items"] += 1
        if joined(pieces_of_items(self._told.inputs[response_id])) != joined([*ask.context, *own]):
            self._wrong(f"{response_id}: its input items are {self._told.inputs[response_id]}")

    def _read(self, response_id: str, events: Sequence[str]) -> EventLog:
        log = EventLog()
        for event in events:
            log.take(event)
        for problem in log.wrong[:3]:
            self._wrong(f"{response_id}: {problem}")
        return log

    def _check_reading(self, reading: ResponseReading) -> None:
        """A reader has each number once, in order, and what any other reader has under it."""
        where, counts = reading.response_id, self._counts
        kind = "foreground streams" if reading.foreground else "background readers"
        counts[f"responses: {kind}"] += 1
        counts[f"… {kind}: connections"] += reading.connections
        counts[f"… {kind}: events"] += len(reading.events)
        counts[f"… {kind}: broken off"] += reading.final is None
        if reading.late:
            self._wrong(f"{where}: {reading.late} events after the end")
        for at, (number, event) in enumerate(reading.events, start=reading.after + 1):
            if number != at:
                self._wrong(f"{where}: a reader got {number} instead of {at}: {event[:300]}")
                return
            if not marks_in(event) <= {reading.mark}:
                self._wrong(f"{where}: an event has another's text: {event[:300]}")
        if reading.final is None and not reading.foreground:
            self._wrong(f"{where}: its reader was not told its end")
        job, replay = self._jobs.get(job_id_of_response(where)), self._told.replays.get(where)
        if replay is None:
            if reading.after == -1:
                self._read(where, [event for _, event in reading.events])
            return
        # A foreground stream that broke off may have lines that Postgres has not.
        known = len(replay) if job is None or job["state"] == "completed" or not reading.foreground else len(replay) - 1
        for number, event in reading.events:
            if number < known and replay[number] != event:
                self._wrong(f"{where}: a reader has {event[:300]}, and another {replay[number][:300]}")
                return
        if reading.final is not None and reading.last != len(replay) - 1:
            self._wrong(f"{where}: a reader ended with {reading.last}, and another with {len(replay) - 1}")

    # -- chains -------------------------------------------------------------------------------------------------------

    def _check_context(self, ask: Ask) -> None:
        """Each call to a provider has exactly the items of all earlier turns, in order, and then the turn's own."""
        system = [piece for piece in ask.own if piece[0] == "system"]
        expected = [*system, *ask.context, *ask.own[len(system) :]]
        for call in self._calls[ask.mark]:
            self._counts["responses: calls whose context was compared"] += 1
            self._counts["… of them in chains"] += bool(ask.context)
            if not _agree(call, expected):
                self._wrong(f"{ask.mark}: its provider was told {joined(pieces_of_call(call))}, not {joined(expected)}")

    # -- conversations ------------------------------------------------------------------------------------------------

    def _check_conversation(self, conversation_id: str) -> None:
        """Its items are whole turns of completed responses, and each turn's provider had the turns before it."""
        items, talk = self._told.items[conversation_id], self._notes.talks[conversation_id]
        blocks = [(key, list(block)) for key, block in itertools.groupby(items, key=_owner)]
        self._counts["conversations"] += 1
        self._counts["… items in conversations"] += len(items)
        times = Counter(key for key, _ in blocks)
        if times and max(times.values()) > 1:
            self._wrong(f"{conversation_id}: turns are mixed or repeated: {items}")
        turns = {job_id for job_id, job in self._jobs.items() if job["conversation_id"] == conversation_id}
        completed = {job_id for job_id in turns if self._jobs[job_id]["state"] == "completed"}
        self._counts["… turns in conversations"] += len(turns)
        self._counts["… turns that completed"] += len(completed)
        added = [own_mark(json.dumps(block)) for key, block in blocks if key not in turns]
        if sorted(added) != sorted(talk.added) or completed != {key for key, _ in blocks if key in turns}:
            self._wrong(f"{conversation_id}: completed {completed}, added {talk.added}, and it has {items}")
        marks = [own_mark(json.dumps(block)) for _, block in blocks]
        for key, block in blocks:
            if key in completed:
                self._check_block(conversation_id, key, block)
        for job_id in turns & self._asks.keys():
            self._check_heard(conversation_id, self._asks[job_id], [block for _, block in blocks], marks)

    def _check_block(self, conversation_id: str, job_id: str, block: Sequence[Json]) -> None:
        """A turn's items are what the client said and what it was answered."""
        output = json.loads(self._jobs[job_id]["response"])["output"]
        own = [piece for piece in self._asks[job_id].own if piece[0] != "system"]
        if list(block[-len(output) :]) != output or joined(pieces_of_items(block[: -len(output)])) != joined(own):
            self._wrong(f"{conversation_id}: the turn {job_id} is {block}, not {own} and {output}")

    def _check_heard(
        self, conversation_id: str, ask: Ask, blocks: Sequence[Sequence[Json]], marks: Sequence[str]
    ) -> None:
        """A turn's provider was told whole turns from the first on, and at least those that the client had heard."""
        least = max((marks.index(mark) + 1 for mark in ask.heard if mark in marks), default=0)
        most = marks.index(ask.mark) if ask.mark in marks else len(blocks)
        system = [piece for piece in ask.own if piece[0] == "system"]
        counts = range(least, most + 1)
        contexts = [pieces_of_items([item for block in blocks[:count] for item in block]) for count in counts]
        for call in self._calls[ask.mark]:
            self._counts["responses: calls whose context was compared"] += 1
            self._counts["… of them in conversations"] += 1
            told = [[*system, *context, *ask.own[len(system) :]] for context in contexts]
            if not any(_agree(call, pieces) for pieces in told):
                self._wrong(f"{conversation_id}: {ask.mark} was asked with {joined(pieces_of_call(call))}")


def _agree(call: Call, expected: Sequence[Piece]) -> bool:
    """Return whether a provider was told what was expected."""
    got, wanted = joined(pieces_of_call(call)), joined(expected)
    return without_ids(got) == without_ids(wanted) if call.kind == "gemini" else got == wanted


def _owner(item: Mapping[str, Any]) -> str:
    """Return the id of the job whose turn an item is of."""
    owner: str = item["id"].rpartition("_")[2][:32]
    return f"job_{owner}"
