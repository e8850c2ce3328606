"""Durable jobs: submitted as fast as the API takes them, waited for until all have ended, then fetched and checked.

`python -m bench.durable` speaks the protocol of `bench.load`: it prints `done` once every job has ended, and checks the
results afterwards, so that only submitting and running count. A latency is the time until the API has acknowledged a
job, which it has stored by then.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict

import uvloop

from bench.load import GRACE, Answer, Client, Load, Plan, judge

_LOOK_SECONDS = 0.02
_WAIT_SECONDS = 30
_READERS = 16
"""Connections that fetch the results."""


class Jobs:
    """Jobs of one plan, whose path is the one that they are submitted to."""

    def __init__(self, plan: Plan) -> None:
        """Take the plan; connections are opened later."""
        self._plan = plan
        self.asked = 0
        self.accepted: dict[str, float] = {}
        """The seconds until each job was acknowledged, by its id."""
        self.errors: list[str] = []

    async def run(self, model: str, total: int) -> float:
        """Submit jobs, wait until they have ended, and return the seconds that both took."""
        load, began = Load(self._plan), time.perf_counter()
        answers, self.errors, _ = await load.run(model, total, self._plan.seconds, 0.0)
        self.asked = load.asked
        for answer in answers:
            self._accept(answer)
        await self._wait()
        return time.perf_counter() - began

    def _accept(self, answer: Answer) -> None:
        body = b"".join(answer.body)
        if answer.status == 202:
            self.accepted[json.loads(body)["id"]] = answer.latency
        else:
            self.errors.append(f"status {answer.status}: {body[:200]!r}")

    async def _wait(self) -> None:
        """Wait until no job is queued or running; after `GRACE` seconds those that are count as wrong answers.

        The last job ends about last: waiting for it first spares the API most of the looks at its lists.
        """
        client, deadline = await self._connect(), time.monotonic() + GRACE
        for job_id in list(self.accepted)[-1:]:
            await self._get(client, f"/{job_id}?wait={_WAIT_SECONDS}")
        for state in ("queued", "running"):
            while time.monotonic() < deadline:
                answer = await self._get(client, f"?status={state}&limit=1")
                if not json.loads(b"".join(answer.body))["data"]:
                    break
                await asyncio.sleep(_LOOK_SECONDS)
        client.close()

    async def results(self) -> list[Answer]:
        """Return every accepted job as it ended, with the time until it was acknowledged as its latency."""
        ids = list(self.accepted)
        parts = await asyncio.gather(*(self._read(ids[index::_READERS]) for index in range(_READERS)))
        return [answer for part in parts for answer in part]

    async def _read(self, ids: Sequence[str]) -> list[Answer]:
        client, found = await self._connect(), []
        for job_id in ids:
            answer = await self._get(client, f"/{job_id}")
            found.append(Answer(answer.status, answer.body, self.accepted[job_id], self.accepted[job_id]))
        client.close()
        return found

    async def _connect(self) -> Client:
        _, client = await asyncio.get_running_loop().create_connection(Client, "127.0.0.1", self._plan.port)
        return client

    async def _get(self, client: Client, rest: str) -> Answer:
        head = f"GET {self._plan.path}{rest} HTTP/1.1\r\nhost: 127.0.0.1:{self._plan.port}\r\n"
        return await client.ask(f"{head}authorization: Bearer {self._plan.key}\r\n\r\n".encode())


async def main() -> None:
    """Run the plan on standard input, as the module's docstring describes."""
    plan = Plan(**json.loads(await asyncio.to_thread(sys.stdin.readline)))
    await Jobs(plan).run(plan.warmup_model, plan.warmup)
    print("ready", flush=True)
    if not await asyncio.to_thread(sys.stdin.readline):
        return
    jobs = Jobs(plan)
    seconds = await jobs.run(plan.model, plan.total)
    print("done", flush=True)
    outcome = judge(plan, jobs.asked, await jobs.results(), jobs.errors, seconds)
    print(json.dumps(asdict(outcome)), flush=True)


if __name__ == "__main__":
    uvloop.run(main())
