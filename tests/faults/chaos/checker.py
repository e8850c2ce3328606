"""What must be so after everything, from the rows, the provider's own log, and what clients saw (DESIGN.md, 6)."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg.rows import DictRow, dict_row

from tests.faults.chaos.load import Notes, Reading
from tests.faults.chaos.rig import Kill
from tests.provider import Call

Json = dict[str, Any]

_MARK = re.compile(r"<[a-z]+-[0-9]{6}(?:\.[0-9]+)?>")


@dataclass(slots=True)
class Verdict:
    """How much was looked at, and what was wrong."""

    counts: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    restarts: list[float] = field(default_factory=list)
    """Seconds from a worker's death to the next start of each job that it had."""


class Checker:
    """Looks at everything that a run left."""

    def __init__(self, database_url: str, notes: Notes, calls: Iterable[Call], kills: Iterable[Kill]) -> None:
        """Read all rows."""
        self.verdict = Verdict(violations=list(notes.wrong))
        self._notes = notes
        self._kills = kills
        self._calls = Counter(mark for call in calls for mark in set(_MARK.findall(json.dumps(call.body))))
        with psycopg.connect(database_url, row_factory=dict_row) as connection:
            self._jobs: dict[str, DictRow] = {
                row["id"]: row for row in connection.execute("SELECT * FROM jobs").fetchall()
            }
            self._usage = connection.execute("SELECT * FROM usage").fetchall()
            self._batches = connection.execute("SELECT * FROM batches").fetchall()
            self._rolled = connection.execute(
                "SELECT coalesce(sum(requests), 0) AS requests, coalesce(sum(cost), 0) AS cost FROM usage_rollups "
                "WHERE view = 'total' AND grain = 'hour'"
            ).fetchone()

    def check(self) -> Verdict:
        """Check all there is."""
        self._check_ends()
        self._check_usage()
        self._check_texts()
        self._check_batches()
        for reading in self._notes.readings:
            self._check_reading(reading)
        self._measure_restarts()
        return self.verdict

    def _wrong(self, text: str) -> None:
        self.verdict.violations.append(text)

    def _check_ends(self) -> None:
        """Every job that somebody was told of is there and has ended, and one key was one job."""
        counts = self.verdict.counts
        counts["jobs accepted, as clients know"] = len(self._notes.accepted)
        counts["jobs"] = len(self._jobs)
        for job in self._jobs.values():
            counts[f"jobs {job['state']}"] += 1
            if job["finished_at"] is None:
                self._wrong(f"{job['id']}: has not ended")
            if (job["state"] == "completed") != (job["response"] is not None):
                self._wrong(f"{job['id']}: {job['state']}, and its response says otherwise")
        for job_id, mark in self._notes.accepted.items():
            if job_id not in self._jobs:
                self._wrong(f"{job_id} ({mark}): accepted and lost")
        for key, ids in self._notes.keyed.items():
            counts["idempotency keys"] += 1
            if len(ids) > 1:
                self._wrong(f"{key}: one key, {len(ids)} jobs")

    def _check_usage(self) -> None:
        """Each job is counted once, and sums are those of the rows."""
        counted = Counter(row["job_id"] for row in self._usage if row["kind"] == "counted")
        self.verdict.counts["usage rows"] = len(self._usage)
        self.verdict.counts["… of attempts that were thrown away"] = sum(
            row["kind"] == "discarded" for row in self._usage
        )
        for job_id, number in counted.items():
            if number > 1:
                self._wrong(f"{job_id}: counted {number} times")
        for job in self._jobs.values():
            if job["state"] == "completed" and not counted[job["id"]]:
                self._wrong(f"{job['id']}: completed and not counted")
        rows = [row for row in self._usage if row["kind"] == "counted"]
        assert self._rolled is not None
        if self._rolled["requests"] != len(rows):
            self._wrong(f"roll-ups have {self._rolled['requests']} requests and the ledger {len(rows)}")
        if self._rolled["cost"] != sum(row["cost"] or 0 for row in rows):
            self._wrong("roll-ups and the ledger differ in cost")

    def _check_texts(self) -> None:
        """An answer repeats its own request's mark and nobody else's, whoever keeps or gets it."""
        for job in self._jobs.values():
            marks = set(_MARK.findall(job["request"] or ""))
            if job["state"] != "completed":
                continue
            if not all(self._calls[mark] for mark in marks):
                self._wrong(f"{job['id']}: answered, and the provider never was asked")
            self.verdict.counts["calls for the same mark again"] += sum(self._calls[mark] > 1 for mark in marks)
            if set(_MARK.findall(job["response"])) != marks:
                self._wrong(f"{job['id']}: its answer is another's")
        for mark, text in self._notes.answers:
            self.verdict.counts["answers that clients got"] += 1
            if set(_MARK.findall(text)) != {mark}:
                self._wrong(f"{mark}: the client was told {text[:100]!r}")

    def _check_batches(self) -> None:
        for batch in self._batches:
            lines = [job for job in self._jobs.values() if job["batch_id"] == batch["id"]]
            self.verdict.counts["lines of batches"] += len(lines)
            if batch["state"] != "completed" or len(lines) != batch["total"]:
                self._wrong(f"{batch['id']}: {batch['state']} with {len(lines)} of {batch['total']} lines")
        known = {batch["id"]: batch for batch in self._batches}
        for batch_id, count in self._notes.batches:
            if batch_id not in known or known[batch_id]["total"] != count:
                self._wrong(f"{batch_id}: not the batch that was accepted")

    def _check_reading(self, reading: Reading) -> None:
        """Events come once and in order, whatever the connections, and end with the job's own end."""
        counts, job = self.verdict.counts, self._jobs.get(reading.job_id)
        counts["subscribers"] += 1
        counts["connections of subscribers"] += reading.connections
        counts["events"] += len(reading.events)
        attempt, seq, text = 0, 0, ""
        for event_id, name, data in reading.events:
            if event_id is None:
                continue
            number, _, place = event_id.partition("-")
            if int(number) < attempt:
                self._wrong(f"{reading.job_id}: attempt {number} after {attempt}")
            if int(number) > attempt:
                attempt, seq, text = int(number), 0, ""
            if name == "job.delta":
                if int(place) != seq + 1:
                    self._wrong(f"{reading.job_id}: event {event_id} after {attempt}-{seq}")
                seq = int(place)
                text += "".join(choice["delta"].get("content") or "" for choice in data["choices"])
        if job is None or not reading.events:
            self._wrong(f"{reading.job_id}: a reader without events or job")
        elif reading.events[-1][1] != f"job.{job['state']}":
            self._wrong(f"{reading.job_id}: {job['state']}, and its reader was told {reading.events[-1][1]}")
        elif job["state"] == "completed":
            content = json.loads(job["response"])["choices"][0]["message"]["content"]
            if text != content:
                self._wrong(f"{reading.job_id}: its reader has {text[:80]!r} of {content[:80]!r}")
        ends = [name for _, name, _ in reading.events if name.removeprefix("job.") in {"completed", "failed"}]
        if len(ends) > 1:
            self._wrong(f"{reading.job_id}: {len(ends)} ends")

    def _measure_restarts(self) -> None:
        for kill in self._kills:
            for job_id, attempt in kill.attempts:
                job = self._jobs.get(job_id)
                tried = {record["attempt"]: record for record in job["tried"]} if job else {}
                following = tried.get(attempt + 1)
                if tried.get(attempt, {}).get("status") == "lost" and following and "seconds" in following:
                    self.verdict.restarts.append(following["ended_at"] - following["seconds"] - kill.at)
