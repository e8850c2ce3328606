"""Invariants after a run, checked from the rows, the provider's log, and the clients' notes."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import DictRow, dict_row
from standardwebhooks import Webhook

from headrace.errors import AnswerInterruptedError
from headrace.ids import response_id as response_id_of
from headrace.stores.connections import Row
from headrace.stores.database import Database
from headrace.usage.rollups import verify_rollups
from headrace.webhooks.signing import derive_secret
from tests.e2e.jobs import FINAL
from tests.faults.chaos.notes import Ask, Json, Notes, Reading, Refusal, Stream, calls_in, marks_in, own_mark
from tests.faults.chaos.plan import ALL_WORKERS, PROVIDER_LINK, SCHEDULERS, WORKERS
from tests.faults.chaos.response_checks import ResponseChecks
from tests.faults.chaos.rig import Rig
from tests.faults.chaos.told import Told
from tests.faults.chaos.turns import text_of
from tests.service import PROVIDER_KEY, SECRET_KEY

RESTART_SECONDS = 15.0
"""How soon a job of a worker that died runs again, if nothing else is broken."""

# What else delays a restart, also for a while after it is mended.
_DELAYING = {
    *("postgres", "redis", ALL_WORKERS, *WORKERS, *SCHEDULERS),
    *("worker-postgres", "worker-redis", "scheduler-postgres", "scheduler-redis"),
}
_MENDED_SECONDS = 10.0
_MOST_LOST = 3
_TOLD_TO_END = {"terminate", "roll"}
# Where a fault hides from the API what became of a job.
_HIDING = {"postgres", "api-postgres"}
_UPSTREAM_STATUSES = {400, 429, 502, 503, 504}
_PRICES = Decimal("2.50"), Decimal("10.00")
_MILLION = 1_000_000
_UNSTORED_SECONDS = 120 + 30


@dataclass(frozen=True, slots=True)
class Restart:
    """How long a job of a worker that was killed waited for its next start, or its end."""

    job_id: str
    seconds: float
    alone: bool
    """Nothing else was broken meanwhile."""


@dataclass(slots=True)
class Verdict:
    """The counts of checked things, and the violations."""

    counts: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    restarts: list[Restart] = field(default_factory=list)
    cut_off: list[str] = field(default_factory=list)
    """Requests that were accepted, or whose answer had begun, when their connection broke."""


class Checker:
    """Looks at everything that a run left."""

    def __init__(self, rig: Rig, notes: Notes, told: Told) -> None:
        """Read all rows."""
        self.verdict = Verdict(violations=[*rig.wrong, *notes.wrong])
        self._counts = self.verdict.counts
        self._rig = rig
        self._notes = notes
        self._told = told
        with psycopg.connect(rig.database_url, row_factory=dict_row) as connection:

            def rows(query: str) -> list[DictRow]:
                return connection.execute(query.encode()).fetchall()

            self._jobs: dict[str, DictRow] = {row["id"]: row for row in rows("SELECT * FROM jobs")}
            self._usage = rows("SELECT * FROM usage")
            self._batches = {row["id"]: row for row in rows("SELECT * FROM batches")}
            self._deliveries = {row["id"]: row for row in rows("SELECT * FROM webhook_deliveries")}
            self._accounts = {row["id"]: row["name"] for row in rows("SELECT id, name FROM accounts")}
            self._rolled = rows("SELECT * FROM usage_rollups WHERE view = 'total'")
            self._secrets = {
                row["account_id"]: derive_secret(SECRET_KEY, row["id"])
                for row in rows("SELECT id, account_id FROM webhook_secrets")
            }
        by_mark = {mark: job_id for job_id, mark in notes.accepted.items()}
        self._asks: dict[str, Ask] = {}
        self._of: defaultdict[str, list[DictRow]] = defaultdict(list)
        for job in self._jobs.values():
            mark = own_mark(job["request"] or "") or notes.accepted.get(job["id"], "")
            if mark in notes.asks:
                self._asks[job["id"]] = notes.asks[mark]
                self._of[mark].append(job)
                by_mark.setdefault(mark, job["id"])
        self._by_mark = {mark: self._jobs[job_id] for mark, job_id in by_mark.items() if job_id in self._jobs}
        self._calls = defaultdict(list)
        for call in rig.provider.calls:
            asked = [call.body.get(name) for name in ("messages", "contents", "input")]
            self._calls[own_mark(json.dumps(asked))].append(call)

    def check(self) -> Verdict:
        """Check all there is."""
        self._check_ends()
        for job_id, ask in self._asks.items():
            if self._jobs[job_id]["finished_at"] is None:
                continue
            self._check_reason(self._jobs[job_id], ask)
            self._check_calls(self._jobs[job_id], ask)
            self._check_answers(self._jobs[job_id], ask)
        for refusal in self._notes.refusals:
            if not self._is_fair(refusal):
                self._wrong(f"{refusal.mark}: told {refusal}")
        self._check_ghosts()
        self._check_cuts()
        self._check_ledger()
        self._check_sums()
        self._check_batches()
        self._check_webhooks()
        for stream in self._notes.streams:
            self._check_stream(stream)
        for reading in self._notes.readings:
            self._check_reading(reading)
        ResponseChecks(
            self._jobs, self._asks, self._calls, self._notes, self._told, counts=self._counts, wrong=self._wrong
        ).check()
        self._check_secrets()
        self._measure_restarts()
        return self.verdict

    def _wrong(self, text: str) -> None:
        self.verdict.violations.append(text)

    # -- ends ---------------------------------------------------------------------------------------------------------

    def _check_ends(self) -> None:
        """Every job that a client knows exists and has ended as its clients were told, and one key is one job."""
        counts = self._counts
        counts["jobs accepted, as clients know"] = len(self._notes.accepted)
        counts["jobs"] = len(self._jobs)
        counts["… erased"] = sum(job["deleted_at"] is not None for job in self._jobs.values())
        now = datetime.now(UTC)
        for job in self._jobs.values():
            counts[f"… {job['state']}"] += 1
            counts[f"… {job['format']}: {job['state']}"] += 1
            erased = job["deleted_at"] is not None
            if job["finished_at"] is None:
                self._wrong(f"{job['id']}: has not ended")
                continue
            if (job["state"] == "completed" and not erased) != (job["response"] is not None):
                self._wrong(f"{job['id']}: {job['state']}, and its response says otherwise")
            if erased and (job["request"] or job["tried"] or job["metadata"]):
                self._wrong(f"{job['id']}: erased, and something is left")
            if not job["stored"] and not erased and (now - job["finished_at"]).total_seconds() > _UNSTORED_SECONDS:
                self._wrong(f"{job['id']}: not to be stored, and is")
        for job_id, mark in self._notes.accepted.items():
            if job_id not in self._jobs:
                self._wrong(f"{job_id} ({mark}): accepted and lost")
        for job_id in self._notes.deleted & self._jobs.keys():
            if self._jobs[job_id]["deleted_at"] is None:
                self._wrong(f"{job_id}: a client was told that it is erased")
        for job_id, state, who in self._notes.ends:
            counts[f"ends told to {who}"] += 1
            if job_id in self._jobs and self._jobs[job_id]["state"] != state:
                self._wrong(f"{job_id}: {self._jobs[job_id]['state']}, and {who} was told {state}")
        for key, ids in self._notes.keyed.items():
            counts["idempotency keys"] += 1
            if len(ids) > 1:
                self._wrong(f"{key}: one key, {len(ids)} jobs or batches")

    def _check_reason(self, job: DictRow, ask: Ask) -> None:
        """A job ends without an answer only for a reason: its client, its deadline, its provider or its workers."""
        state, reason = job["state"], ""
        if state == "completed":
            reason = "" if not ask.model.endless else "its provider never answers"
        elif state == "expired":
            if "timeout" not in ask.body or job["finished_at"] < job["deadline_at"]:
                reason = "its deadline has not passed"
        elif state == "cancelled":
            left = not ask.background and not ask.keyed and not ask.answers
            if job["id"] not in self._notes.cancelled and not left and not ask.refused:
                reason = "no client asked for that"
        elif state == "failed":
            reason = self._check_failure(job, ask)
        if reason:
            self._wrong(f"{job['id']} {ask.mark} of {ask.model.name}: {state}, and {reason} ({job['error']})")

    def _check_failure(self, job: DictRow, ask: Ask) -> str:
        error = json.loads(job["error"])
        if error["code"] == "worker_lost":
            self._counts["jobs failed for their workers' sake"] += 1
            begun = not ask.background and ask.body.get("stream") is True
            if begun and self._was_drained(job):
                return ""
            return "" if job["lost"] >= (1 if begun else _MOST_LOST) else f"it lost {job['lost']} workers"
        if error["status"] not in _UPSTREAM_STATUSES:
            return "that is no provider's error"
        return "" if self._may_fail(job, ask) else "its provider never fails"

    def _may_fail(self, job: DictRow, ask: Ask) -> bool:
        """Return whether a job may have failed for its provider's sake: the provider's own, or the way there."""
        if ask.model.fails or ask.model.faultless:
            return ask.model.fails
        return self._ran_during(job, {PROVIDER_LINK}, later=60)

    def _was_drained(self, job: DictRow) -> bool:
        """Return whether a worker was told to end while the job ran: it breaks off streams that take longer."""
        return self._ran_during(job, set(WORKERS), kinds=_TOLD_TO_END)

    def _ran_during(
        self, job: DictRow, targets: Collection[str], *, kinds: Collection[str] = (), later: float = 0
    ) -> bool:
        """Return whether a job ran during a fault of these targets and kinds, or up to `later` seconds after it."""
        began, ended = job["created_at"].timestamp(), job["finished_at"].timestamp()
        return any(
            happening.fault.target in targets
            and (not kinds or happening.fault.kind in kinds)
            and happening.began < ended
            and happening.ended > began - later
            for happening in self._rig.history
        )

    def _is_fair(self, refusal: Refusal) -> bool:
        """Return whether the API had to refuse the request."""
        ask, job = self._notes.asks[refusal.mark], self._by_mark.get(refusal.mark)
        if refusal.code == "service_unavailable":
            return refusal.status in {200, 503}  # 200 is a stream that had begun
        if refusal.code == "outcome_unknown":
            faults = [happening.fault for happening in self._rig.history]
            return any(fault.kind in _TOLD_TO_END or fault.target in _HIDING for fault in faults)
        if job is None:  # an erased job, whose id its client never got
            return ask.body.get("store") is False and not ask.model.faultless
        error = json.loads(job["error"] or "{}")
        if refusal.code == error.get("code"):
            return refusal.status in {200, error.get("status")}
        if refusal.message == AnswerInterruptedError.default:  # its code is `server_error` in a stream of a response
            returned = any(found["status"] == "returned" for found in job["tried"])
            moved = job["attempt"] > 1 or job["lost"] > 0 or returned or self._was_drained(job)
            return bool(refusal.status == 200 and moved)
        return False

    def _check_ghosts(self) -> None:
        """A request is one job, however often its key was sent; without a key, a request answered 503 makes no job."""
        for mark, found in self._of.items():
            ask = self._notes.asks[mark]
            running = [job["id"] for job in found if job["state"] != "cancelled"]
            self._counts["answers of 503 that left no job"] += ask.refused
            self._counts["… that left a cancelled one"] += len(found) - len(running) if ask.refused else 0
            if ask.keyed or ask.line:
                if len(found) > 1:
                    self._wrong(f"{mark}: one request, and {len(found)} jobs")
            elif len(running) > ask.sent - ask.refused:
                self._wrong(f"{mark}: sent {ask.sent} times, refused {ask.refused} times, and jobs that ran: {running}")

    def _check_cuts(self) -> None:
        """A network may break any connection, so a cut is no violation; but a rolling restart must cause none."""
        for cut in self._notes.cuts:
            job = self._by_mark.get(cut.mark)
            accepted = job is not None and cut.began < job["created_at"].timestamp() < cut.ended
            if cut.answering or accepted:
                self._counts["requests cut off after they were accepted"] += 1
                self.verdict.cut_off.append(f"{cut}: {'was being answered' if cut.answering else job}")

    # -- answers ------------------------------------------------------------------------------------------------------

    def _check_answers(self, job: DictRow, ask: Ask) -> None:
        """An answer repeats only its own request's mark, and is the same in Postgres and at each client.

        A request without a key that was refused and sent again may have a cancelled job beside the completed one.
        """
        others = [other["state"] for other in self._of[ask.mark] if other["id"] != job["id"]]
        was_refused = bool(ask.refused) and job["state"] == "cancelled" and "completed" in others
        for text in ask.answers:
            self._counts["answers that clients got"] += 1
            if marks_in(text) != {ask.mark}:
                self._wrong(f"{ask.mark}: the client was told {text[:100]!r}")
            if job["state"] != "completed" and not was_refused:
                self._wrong(f"{ask.mark}: answered, and {job['id']} is {job['state']}")
        if job["response"] is not None:
            kept = _said(json.loads(job["response"]))
            if marks_in(job["response"]) != {ask.mark}:
                self._wrong(f"{job['id']}: its answer is another's")
            if any(text != kept for text in ask.answers):
                self._wrong(f"{ask.mark}: told {ask.answers}, kept {kept!r}")
        if self._accounts[job["account_id"]] != ask.account:
            self._wrong(f"{job['id']}: is {self._accounts[job['account_id']]}'s")

    def _check_calls(self, job: DictRow, ask: Ask) -> None:
        """A provider is asked once an attempt, and attempts are what the row tells."""
        calls, attempts = len(self._calls[ask.mark]), job["attempt"]
        # Calls are known by their request: one that was sent again may have had several jobs.
        others = sum(other["attempt"] for other in self._of[ask.mark]) - attempts
        self._counts["calls to providers"] += calls
        self._counts["… for a job that had one already"] += max(0, calls - 1)
        if calls > attempts + others:
            self._wrong(f"{job['id']}: {calls} calls in {attempts} attempts")
        if job["deleted_at"] is None:
            tried = [record["attempt"] for record in job["tried"]]
            if len(set(tried)) < len(tried) or not set(tried) <= set(range(1, attempts + 1)):
                self._wrong(f"{job['id']}: {attempts} attempts, and it tells of {tried}")
            if calls > len(tried) + others:
                self._wrong(f"{job['id']}: {calls} calls, and it tells of {tried}")
        if job["state"] == "completed" and not calls:
            self._wrong(f"{job['id']}: answered, and the provider never was asked")

    # -- usage --------------------------------------------------------------------------------------------------------

    def _check_ledger(self) -> None:
        """A job is counted once, with what the provider says that its answer used, and no call is counted twice."""
        counted = Counter(row["job_id"] for row in self._usage if row["kind"] == "counted")
        self._counts["usage rows"] = len(self._usage)
        self._counts["… of attempts that were thrown away"] = len(self._usage) - counted.total()
        for job_id, number in counted.items():
            if number > 1 or job_id not in self._jobs or self._jobs[job_id]["finished_at"] is None:
                self._wrong(f"{job_id}: counted {number} times, and may not be over")
        for job_id, job in self._jobs.items():
            if job["state"] == "completed" and not counted[job_id]:
                self._wrong(f"{job_id}: completed and not counted")
        reported: Counter[int] = Counter()
        for row in self._usage:
            ask = self._asks.get(row["job_id"])
            if ask is None:
                continue
            said = dict(self._rig.upstreams.reported[call] for call in self._calls[ask.mark] if self._said(call))
            prompt, completion = row["prompt_tokens"], row["completion_tokens"]
            reported[prompt] += not row["estimated"]
            if self._jobs[row["job_id"]]["state"] == "completed" and row["kind"] == "counted":
                self._counts["… as the provider said"] += 1
                cost = (prompt * _PRICES[0] + completion * _PRICES[1]) / _MILLION
                if row["estimated"] or said.get(prompt) != completion or row["cost"] != cost:
                    self._wrong(f"{row['job_id']}: counted {prompt} and {completion}, {row['cost']}; said: {said}")
            elif not row["estimated"] and prompt not in said:
                self._wrong(f"{row['job_id']}: {prompt} and {completion} {row['kind']}; said: {said}")
        for prompt, number in reported.items():
            if number > 1:
                self._wrong(f"the call that used {prompt} tokens is in the ledger {number} times")

    def _said(self, call: Any) -> bool:
        return call in self._rig.upstreams.reported

    def _check_sums(self) -> None:
        """The sums of usage are the same by hour, day and month, in the API and row by row."""
        verified = asyncio.run(_verify(self._rig.database_url))
        if verified.differences:
            self._wrong(f"roll-ups: {verified}")
        ledger = _add_up(self._usage)
        for grain in ("hour", "day", "month"):
            cells = [row for row in self._rolled if row["grain"] == grain]
            rolled = {name: sum((row[name] for row in cells), Decimal(0)) for name in ledger}
            if rolled != ledger:
                self._wrong(f"roll-ups by {grain} have {rolled}, and the ledger {ledger}")
        for account_id, account in self._accounts.items():
            if account in self._told.usage:
                own = _add_up([row for row in self._usage if row["account_id"] == account_id])
                told = {name: Decimal(self._told.usage[account].get(name, 0)) for name in own}
                if told != own:
                    self._wrong(f"{account}: told {told}, and the ledger has {own}")

    # -- batches ------------------------------------------------------------------------------------------------------

    def _check_batches(self) -> None:
        """A batch that was accepted has each of its lines once, in its rows and in its results."""
        lines: dict[str, list[DictRow]] = defaultdict(list)
        for job in self._jobs.values():
            if job["batch_id"] is not None:
                lines[job["batch_id"]].append(job)
        self._counts["batches"] = len(self._batches)
        self._counts["lines of batches"] = sum(map(len, lines.values()))
        for batch_id, (_, count, _) in self._notes.batches.items():
            batch = self._batches.get(batch_id)
            if batch is None or batch["total"] != count:
                self._wrong(f"{batch_id}: not the batch that was accepted")
        for batch_id, batch in self._batches.items():
            jobs = lines[batch_id]
            if batch["state"] != "completed" or len(jobs) != batch["total"]:
                self._wrong(f"{batch_id}: {batch['state']} with {len(jobs)} of {batch['total']} lines")
            ids = {job["custom_id"]: job["id"] for job in jobs}
            results = self._told.lines.get(batch_id, [])
            if batch_id in self._notes.batches and sorted(ids) != sorted(line["custom_id"] for line in results):
                self._wrong(f"{batch_id}: {len(results)} results of {len(ids)} lines")
                continue
            for line in results:
                job_id = ids[line["custom_id"]]
                if (line["error"] is None and line["response"]["status_code"] == 200) != (
                    self._jobs[job_id]["state"] == "completed"
                ) or not marks_in(json.dumps(line)) <= {self._asks[job_id].mark}:
                    self._wrong(f"{batch_id}: {line['custom_id']} is {self._jobs[job_id]['state']}, told {line}")

    # -- webhooks -----------------------------------------------------------------------------------------------------

    def _check_webhooks(self) -> None:
        """Each requested webhook came with its job's or batch's end, under one id, and no other webhook came."""
        hooks = self._rig.hooks
        self._counts["webhooks that came"] = len(hooks.messages)
        messages = defaultdict(list)
        for message in hooks.messages:
            messages[json.loads(message.body)["data"]["id"]].append(message)
        subjects = {
            batch_id: (f"batch.{self._batches[batch_id]['state']}", self._notes.batches[batch_id][2])
            for batch_id in self._batches.keys() & self._notes.batches.keys()
        }
        for job_id, ask in self._asks.items():
            job = self._jobs[job_id]
            subjects[job_id] = f"job.{job['state']}", ask.webhook
            if ask.format == "responses":
                response_id = response_id_of(job_id)
                final = self._notes.finals.get(response_id)
                subjects[response_id] = f"response.{_status(job) if final is None else final['status']}", ask.webhook
        deliveries = Counter(json.loads(row["payload"])["data"]["id"] for row in self._deliveries.values())
        for subject, (event, webhook) in subjects.items():
            came = messages.pop(subject, [])
            ids = {message.id for message in came}
            self._counts["… asked for"] += webhook is not None
            if deliveries[subject] != (webhook is not None) or len(ids) != (webhook is not None):
                self._wrong(f"{subject}: {webhook}, {deliveries[subject]} deliveries, told {len(came)} times by {ids}")
            if not ids <= hooks.taken:
                self._wrong(f"{subject}: its webhook was never taken")
            for message in came:
                if json.loads(message.body)["type"] != event:
                    self._wrong(f"{subject}: {event}, and its webhook says {message.body}")
        known = {*self._jobs, *map(response_id_of, self._jobs), *self._batches}
        if left := messages.keys() - known:
            self._wrong(f"webhooks of unknown jobs or batches: {left}")
        for message in hooks.messages:
            self._notes.read(message.body + str(message.headers), message.id)
            secret = self._secrets[self._deliveries[message.id]["account_id"]]
            sent_at = datetime.fromtimestamp(int(message.headers["webhook-timestamp"]), UTC)
            if Webhook(secret).sign(message.id, sent_at, message.body) != message.headers["webhook-signature"]:
                self._wrong(f"{message.id}: not signed with its account's secret")

    # -- events -------------------------------------------------------------------------------------------------------

    def _check_reading(self, reading: Reading) -> None:
        """Events come once and in order, whatever the connections, and end once, with the job's own end."""
        counts, job = self._counts, self._jobs.get(reading.job_id)
        counts["subscribers"] += 1
        counts["… their connections"] += reading.connections
        counts["events"] += len(reading.events)
        attempt, seq, text, finishes = 0, -1, "", 0
        for event_id, name, data in reading.events:
            if not marks_in(json.dumps(data)) <= {reading.mark}:
                self._wrong(f"{reading.job_id}: an event has another's text: {data}")
            if name == "error":
                self._wrong(f"{reading.job_id}: a reader was told {data}")
            if event_id is None:
                continue
            number, place = map(int, event_id.split("-"))
            if number < attempt or place != (seq + 1 if number == attempt else 0):
                self._wrong(f"{reading.job_id}: event {event_id} after {attempt}-{seq}")
            if number > attempt:
                text, finishes = "", 0
            if name == "job.delta":
                text += "".join(choice["delta"].get("content") or "" for choice in data["choices"])
                finishes += sum(choice["finish_reason"] is not None for choice in data["choices"])
                if len(calls_in(text)) > 1:
                    self._wrong(f"{reading.job_id}: event {event_id} is not of attempt {number}")
            attempt, seq = number, place
        ends = [name for _, name, _ in reading.events if name.removeprefix("job.") in FINAL]
        if job is None or not reading.events:
            self._wrong(f"{reading.job_id}: a reader without events or job")
        elif ends != [f"job.{job['state']}"] or reading.events[-1][1] != ends[0]:
            self._wrong(f"{reading.job_id}: {job['state']}, and its reader was told {ends}")
        elif job["response"] is not None:
            content = json.loads(job["response"])["choices"][0]["message"]["content"]
            if text != content or finishes != 1:
                self._wrong(f"{reading.job_id}: its reader has {text[:80]!r} of {content[:80]!r}, {finishes} finishes")

    def _check_stream(self, stream: Stream) -> None:
        """A stream is of one attempt; a whole stream finishes once, is done once, and is the stored answer."""
        counts, mark = self._counts, stream.mark
        counts["streams"] += 1
        counts["… that broke off"] += not stream.done
        if stream.late:
            self._wrong(f"{mark}: {stream.late} events after a stream's end")
        if len(calls_in(stream.text)) > 1:
            self._wrong(f"{mark}: a stream has text of several attempts: {stream.text[:200]!r}")
        if stream.finishes > 1 or stream.finishes < stream.done:
            self._wrong(f"{mark}: a stream with {stream.finishes} finishes")

    # -- secrets ------------------------------------------------------------------------------------------------------

    def _check_secrets(self) -> None:
        """No key and no secret is in a log, in a column, or at a provider whose it is not."""
        webhook_secrets = {secret.removeprefix("whsec_") for secret in self._secrets.values()}
        secrets = [*self._notes.secrets, *webhook_secrets]
        stores = self._rig.service.stores
        logs = [*self._rig.service.directory.glob("*.log"), stores.postgres.data_dir / "log"]
        logs.append(stores.valkey.data_dir / "log")
        for path in logs:
            self._counts["log lines"] += self._check_log(path, secrets)
        with psycopg.connect(self._rig.database_url) as connection:
            for (table,) in connection.execute(
                "SELECT relname FROM pg_class WHERE relkind IN ('r', 'p') AND relnamespace = 'public'::regnamespace"
            ).fetchall():
                found = connection.execute(
                    sql.SQL("SELECT count(*) FROM {} AS found WHERE found::text LIKE ANY(%s)").format(
                        sql.Identifier(table)
                    ),
                    [[pattern for secret in secrets for pattern in _patterns(secret)]],
                ).fetchone()
                self._counts["tables searched for secrets"] += 1
                if found is None or found[0]:
                    self._wrong(f"{table}: a secret is kept in it")
        own = self._notes.secrets - {PROVIDER_KEY}
        for call in self._rig.provider.calls:
            if any(secret in json.dumps([dict(call.headers), call.body]) for secret in own):
                self._wrong(f"a provider was told a client's key: {call.path}")

    def _check_log(self, path: Path, secrets: Iterable[str]) -> int:
        text = path.read_text(errors="replace")
        if any(secret in text for secret in secrets):
            self._wrong(f"{path.name}: a secret is in it")
        return text.count("\n")

    # -- time ---------------------------------------------------------------------------------------------------------

    def _measure_restarts(self) -> None:
        """Each job of a worker that was killed starts again soon, or ends."""
        wall = time.time() - time.monotonic()
        for kill in self._rig.kills:
            for job_id, attempt in kill.attempts:
                job = self._jobs[job_id]
                tried = {record["attempt"]: record for record in job["tried"]}
                if tried.get(attempt, {}).get("status") != "lost" or job["finished_at"] is None:
                    continue  # it had just ended, or is erased, or never ended, which is told elsewhere
                starts = [wall + call.arrived_at for call in self._calls[self._asks[job_id].mark]]
                starts.append(job["finished_at"].timestamp())
                if "seconds" in tried.get(attempt + 1, {}):
                    starts.append(tried[attempt + 1]["ended_at"] - tried[attempt + 1]["seconds"])
                start = min(start for start in starts if start > kill.at)
                restart = Restart(job_id, start - kill.at, self._is_alone(kill.at, start))
                self.verdict.restarts.append(restart)
                if restart.alone and restart.seconds > RESTART_SECONDS:
                    self._wrong(f"{job_id}: started {restart.seconds:.1f} s after its worker was killed")

    def _is_alone(self, began: float, ended: float) -> bool:
        """Return whether nothing else was broken between a kill and the next start or end."""
        others = [
            happening
            for happening in self._rig.history
            if happening.fault.target in _DELAYING
            and happening.began < ended
            and happening.ended > began - _MENDED_SECONDS
        ]
        return len(others) == 1


def _status(job: DictRow) -> str:
    """Return the status of a job's response."""
    if job["response"] is not None:
        return str(json.loads(job["response"])["status"])
    return "failed" if job["state"] == "expired" else str(job["state"])


def _said(answer: Json) -> str:
    """Return the text of a completion, or all texts of a response."""
    text: str = answer["choices"][0]["message"]["content"] if "choices" in answer else text_of(answer)
    return text


async def _verify(database_url: str) -> Row:
    """Return what `headrace usage verify` finds."""
    database = Database.connect(database_url, connections=1)
    try:
        return await verify_rollups(database)
    finally:
        await database.close()


def _patterns(secret: str) -> Sequence[str]:
    """Return the forms of a secret in a row's text: plain, or as bytes in hexadecimal digits."""
    plain = secret.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return f"%{plain}%", f"%{secret.encode().hex()}%"


def _add_up(rows: Iterable[Mapping[str, Any]]) -> dict[str, Decimal]:
    """Return the sums of rows of the ledger."""
    names = "requests prompt_tokens completion_tokens cost estimated_requests discarded_attempts discarded_tokens"
    sums = dict.fromkeys([*names.split(), "discarded_cost"], Decimal(0))
    for row in rows:
        if row["kind"] == "discarded":
            sums["discarded_attempts"] += 1
            sums["discarded_tokens"] += row["prompt_tokens"] + row["completion_tokens"]
            sums["discarded_cost"] += row["cost"] or 0
        else:
            sums["requests"] += row["kind"] == "counted"
            sums["estimated_requests"] += row["estimated"]
            for name in ("prompt_tokens", "completion_tokens", "cost"):
                sums[name] += row[name] or 0
    return sums
