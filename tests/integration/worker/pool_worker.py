"""A Celery worker on AsyncioPool, for test_pool.

Run `python -m tests.integration.worker.pool_worker REDIS_URL CONCURRENCY MODE`. It reports to Redis: in the list `log`,
in the list `order` of names as they begin, and in the sets `running` and `done` of `pid:name`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator

from redis.asyncio import Redis

from headrace.queue import create_celery, queue_name
from worker.pool import AsyncioPool

PARK = "tests.park"
BREAK = "tests.break"


class Pool(AsyncioPool):
    """Lets parked tasks go when the gate is open, or the worker stops."""

    mode = ""
    redis: Redis
    leaving: asyncio.Event
    tasks: set[asyncio.Future[None]]

    @contextlib.asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Open Redis, and at the end wait for the tasks that run."""
        Pool.leaving, Pool.tasks = asyncio.Event(), set()
        async with Redis.from_url(self.app.conf["headrace_redis_url"], max_connections=1000) as Pool.redis:
            if Pool.mode == "broken":
                raise OSError("the lifespan's store is unavailable")
            await Pool.redis.rpush("log", "opened")
            yield
            Pool.leaving.set()
            await asyncio.gather(*Pool.tasks)
            await Pool.redis.rpush("log", "closed")


async def park(name: str, *, queue: str) -> None:
    """Wait until the gate is open, or the worker stops."""
    assert queue == queue_name("priority" if name.startswith("urgent") else "default")
    who = f"{os.getpid()}:{name}"
    gone = asyncio.get_running_loop().create_future()
    Pool.tasks.add(gone)
    await Pool.redis.rpush("order", name)
    await Pool.redis.sadd("running", who)
    while not await Pool.redis.exists("gate"):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.02):
                await Pool.leaving.wait()
                break
    await Pool.redis.sadd("done", who)
    gone.set_result(None)


async def break_down(*, queue: str) -> None:
    """Raise."""
    await asyncio.sleep(0)
    assert queue == queue_name("default")
    raise RuntimeError("this task is broken")


def main(redis_url: str, concurrency: str, mode: str) -> None:
    """Work until told to stop."""
    Pool.mode = mode
    app = create_celery(redis_url)
    app.task(park, name=PARK)
    app.task(break_down, name=BREAK)
    worker = app.Worker(
        pool_cls=Pool,
        concurrency=int(concurrency),
        loglevel="INFO",
        queues=[queue_name("priority"), queue_name("default")],
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        quiet=True,
    )
    worker.start()
    sys.exit(worker.exitcode)


if __name__ == "__main__":
    main(*sys.argv[1:])
