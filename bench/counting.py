"""The CPU that the metrics add to a job, and that a scrape takes: `python -m bench.counting` prints both.

It replays what one job does to the metrics, through the functions that the processes call, so it needs no store and no
other process. The processes count whether or not the metrics port is on: the port adds its scrapes, and a timer that
ticks once a second.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from decimal import Decimal
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

from headrace.catalogue.file import CatalogueFile
from headrace.formats.chat.usage import TokenUsage
from headrace.jobs.state import State
from headrace.telemetry.exposition import render_metrics
from headrace.telemetry.metrics import ALL, GROUP_COMMIT, HTTP_REQUESTS, JOBS_SUBMITTED, bound
from headrace.telemetry.stores import POSTGRES, REDIS
from headrace.usage.spent import SpentUsage
from worker.measures import Measures

# Microseconds of CPU of a job that the shares are of, a round figure near 64 at a time; seconds between two scrapes.
_JOB_MICROSECONDS = 1000.0
_SCRAPE_SECONDS = 15.0
# Statements, commands and groups of ten jobs, which share them when many run at a time.
_TEN = 10
_STATEMENTS, _COMMANDS, _GROUPS = 16, 10, 15
_JOBS = 50_000
_SCRAPES = 200
_MODELS = 30

_CATALOGUE = """
[providers.p]
kind = "openai"
base_url = "http://127.0.0.1:1"
""" + "".join(f'[models."m{number}"]\nroutes = ["p/m{number}"]\n' for number in range(_MODELS))


def main() -> None:
    """Measure and print."""
    with TemporaryDirectory() as directory:
        path = Path(directory, "headrace.toml")
        path.write_text(_CATALOGUE)
        file = CatalogueFile(path, demo=False)
    for number in range(_MODELS):  # each model has its series
        _ten_jobs(file, f"m{number}", streamed=True)()
    for streamed in (False, True):
        job = _microseconds(_ten_jobs(file, "m0", streamed=streamed), _JOBS // _TEN) / _TEN
        kind = "streamed" if streamed else "whole"
        print(f"counting, port off or on: {job:.1f} us a {kind} job, {job / _JOB_MICROSECONDS:.2%} of its CPU")
    for part in ALL:
        scrape = _microseconds(partial(render_metrics, part), _SCRAPES)
        share = scrape / 1e6 / _SCRAPE_SECONDS
        size = len(render_metrics(part))
        print(
            f"port on, a scrape of the {part}: {scrape / 1000:.2f} ms, {size} bytes; every 15 s {share:.3%} of a core"
        )


def _microseconds(call: Callable[[], object], times: int) -> float:
    """Return the CPU time of a call: the least of five runs, each the mean over so many calls."""
    runs = []
    for _ in range(5):
        began = time.process_time()
        for _ in range(times // 5):
            call()
        runs.append((time.process_time() - began) / (times // 5) * 1e6)
    return min(runs)


def _ten_jobs(file: CatalogueFile, model: str, *, streamed: bool) -> Callable[[], None]:
    """Return what ten jobs add to the metrics of the API and of their worker."""
    requests, submitted = bound(HTTP_REQUESTS), bound(JOBS_SUBMITTED)
    sizes = [GROUP_COMMIT.labels(statement) for statement in ("accept", "claim", "finish")]
    measures = Measures(file)
    [route] = file.current.routes(model)
    now = time.monotonic()
    job: Any = SimpleNamespace(tier="default", model=model, format="chat", seconds_waited=0.003)
    attempt: Any = SimpleNamespace(
        job=job,
        route=route,
        began=now,
        called_at=now + 0.001,
        call_seconds=0.8,
        throttled_seconds=0.001,
        deltas=SimpleNamespace(first_at=now + 0.2 if streamed else None),
    )
    spent = SpentUsage("p", model, TokenUsage(100, 20), Decimal("0.0001"))

    def run() -> None:
        for _ in range(_GROUPS // len(sizes)):
            for size in sizes:
                size.observe(2)
        for _ in range(_STATEMENTS):
            POSTGRES.answered(0.0008)
        for _ in range(_COMMANDS):
            REDIS.answered(0.0003)
        for _ in range(_TEN):
            requests("/chat/completions", "2xx").inc()
            submitted("default", "chat").inc()
            measures.claimed(job)
            measures.ended(job, State.COMPLETED, spent)
            measures.answered(attempt)

    return run


if __name__ == "__main__":
    main()
