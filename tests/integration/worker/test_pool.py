"""Celery over the asyncio pool, in a process of its own on a real Valkey."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from headrace.dev.valkey import EmbeddedValkey
from headrace.queue import create_celery, queue_name
from tests.integration.worker.pool_worker import BREAK, PARK
from tests.service import ROOT
from tests.waiting import PATIENCE, until

MANY = 200


class Worker:
    """A worker process, and its notes in Redis."""

    def __init__(self, url: str, log: Path, *, concurrency: int, mode: str) -> None:
        self.url = url
        self.log = log
        self.redis: Any = Redis.from_url(url, decode_responses=True)
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.integration.worker.pool_worker", url, str(concurrency), mode],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def send(self, task: str, *names: str, tier: str = "default") -> None:
        app = create_celery(self.url)
        for name in names or ("",):
            app.send_task(task, args=[name] if name else [], queue=queue_name(tier))
        app.close()

    def until(self, condition: Callable[[], Any], what: str) -> None:
        def holds() -> Any:
            assert self.process.poll() is None, f"the worker ended:\n{self.log.read_text()}"
            return condition()

        try:
            until(holds, what)
        except TimeoutError as error:
            error.add_note(self.log.read_text())
            raise

    @property
    def waiting(self) -> int:
        """How many messages no worker has."""
        return int(self.redis.llen(queue_name("default")))

    def names(self, key: str) -> set[str]:
        return {who.partition(":")[2] for who in self.redis.smembers(key)}

    def close(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE)
        self.redis.close()


Start = Callable[..., Worker]


@pytest.fixture
def start(valkey: EmbeddedValkey, tmp_path: Path) -> Iterator[Start]:
    with contextlib.ExitStack() as stack:

        def start(*, concurrency: int = MANY, mode: str = "") -> Worker:
            worker = Worker(valkey.url, tmp_path / "worker.log", concurrency=concurrency, mode=mode)
            stack.callback(worker.close)
            return worker

        yield start


def test_hundreds_of_tasks_run_at_once_in_one_process_and_each_once(start: Start) -> None:
    worker = start()
    names = {f"task-{number}" for number in range(MANY)}
    worker.send(PARK, *names)
    worker.until(lambda: worker.redis.scard("running") == MANY, "all of them")
    assert worker.redis.smembers("running") == {f"{worker.process.pid}:{name}" for name in names}
    assert worker.redis.scard("done") == 0
    worker.redis.set("gate", "open")
    worker.until(lambda: worker.redis.scard("done") == MANY, "their ends")
    assert worker.names("done") == names
    assert worker.waiting == 0
    assert worker.redis.exists("unacked", "unacked_index") == 0


def test_what_is_beyond_its_limit_stays_on_the_queue_for_others(start: Start) -> None:
    worker = start(concurrency=4)
    worker.send(PARK, *(f"task-{number}" for number in range(20)))
    worker.until(lambda: worker.redis.scard("running") == 4 and worker.waiting <= 15, "as many as it may, and one more")
    assert worker.waiting == 15
    worker.redis.set("gate", "open")
    worker.until(lambda: worker.redis.scard("done") == 20, "the rest")


def test_the_first_tier_comes_first(start: Start) -> None:
    worker = start(concurrency=1)
    worker.send(PARK, "running", "in-hand")
    worker.until(lambda: worker.redis.scard("running") == 1 and not worker.waiting, "one that runs, and one in hand")
    worker.send(PARK, "later")
    worker.send(PARK, "urgent", tier="priority")
    worker.redis.set("gate", "open")
    worker.until(lambda: worker.redis.scard("done") == 4, "all of them")
    assert worker.redis.lrange("order", 0, -1) == ["running", "in-hand", "urgent", "later"]


def test_a_message_that_no_task_can_take_is_skipped(start: Start) -> None:
    worker = start()
    for text in ("", "[]", '{"body": "W10="}', '{"body": "!", "headers": {"task": "tests.park"}}'):
        worker.redis.lpush(queue_name("default"), text)
    worker.send(PARK)  # without its argument
    worker.send("tests.unknown")
    worker.send(PARK, "after")
    worker.until(lambda: worker.names("running") == {"after"}, "the task behind them")
    assert worker.log.read_text().count("did not write") == 6


def test_a_task_that_breaks_makes_room_and_disturbs_no_other(start: Start) -> None:
    worker = start(concurrency=2)
    worker.send(PARK, "before")
    for _ in range(5):
        worker.send(BREAK)
    worker.send(PARK, "after")
    worker.until(lambda: worker.redis.scard("running") == 2, "the others")
    assert worker.log.read_text().count("RuntimeError: this task is broken") == 5
    worker.redis.set("gate", "open")
    worker.until(lambda: worker.redis.scard("done") == 2, "their ends")


@pytest.mark.parametrize(
    ("number", "exit_code"),
    [(signal.SIGTERM, 0), (signal.SIGINT, 1)],  # Celery's exit codes
)
@pytest.mark.parametrize("full", [False, True])
def test_a_worker_that_is_told_to_stop_lets_its_tasks_end_and_takes_no_more_off_its_queue(
    start: Start, number: signal.Signals, exit_code: int, full: bool
) -> None:
    worker = start(concurrency=20 if full else 100)
    worker.send(PARK, *(f"task-{number}" for number in range(30 if full else 20)))
    worker.until(lambda: worker.redis.scard("running") == 20, "all that it may")
    if full:
        worker.until(lambda: worker.waiting == 9, "one that waits in the worker")
    worker.process.send_signal(number)
    assert worker.process.wait(PATIENCE) == exit_code, worker.log.read_text()
    assert worker.redis.smembers("done") == worker.redis.smembers("running")
    assert worker.redis.scard("done") == 20 + full, "no other worker has the message that waited in this one"
    assert worker.redis.lrange("log", 0, -1) == ["opened", "closed"]
    assert worker.waiting == (9 if full else 0)


def test_a_worker_finds_its_queue_again_after_redis_was_unavailable(start: Start, valkey: EmbeddedValkey) -> None:
    worker = start()
    worker.send(PARK, "before")
    worker.until(lambda: worker.redis.scard("running") == 1, "the first")
    valkey.stop()
    valkey.start()
    worker.send(PARK, "after")
    worker.until(lambda: "after" in worker.names("running"), "the second")


def test_a_worker_whose_lifespan_cannot_begin_ends_and_says_why(start: Start) -> None:
    worker = start(mode="broken")
    assert worker.process.wait(PATIENCE) != 0
    assert "the lifespan's store is unavailable" in worker.log.read_text()
