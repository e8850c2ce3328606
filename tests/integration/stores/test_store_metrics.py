"""What commands at a real Valkey and statements at a real Postgres add to the metrics of the stores."""

from __future__ import annotations

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from sqlalchemy.exc import SQLAlchemyError

from headrace.dev.valkey import EmbeddedValkey
from headrace.stores.database import Database, execute
from headrace.stores.redis import connect_redis
from headrace.telemetry.metrics import STORE_SECONDS, STORE_UP
from headrace.telemetry.stores import POSTGRES, REDIS, StoreMeasure
from tests.metrics import Rise, values


async def test_a_command_and_a_pipeline_are_a_round_trip_each(valkey: EmbeddedValkey) -> None:
    async with connect_redis(valkey.url) as redis:
        await redis.ping()
        asked = Rise(STORE_SECONDS)
        await redis.set("a", 1)
        assert asked() == {("redis",): 1}
        async with redis.pipeline(transaction=False) as pipeline:
            pipeline.get("a")
            pipeline.get("b")
            assert await pipeline.execute() == [b"1", None]
        assert asked() == {("redis",): 2}
        assert (REDIS.up, values(STORE_UP)["redis",]) == (True, 1)


@pytest.mark.parametrize("piped", [False, True])
async def test_a_redis_that_does_not_answer_is_unavailable(valkey: EmbeddedValkey, piped: bool) -> None:
    async with connect_redis(valkey.url) as redis, redis.pipeline() as pipeline:
        await redis.ping()
        valkey.stop()
        pipeline.get("a")
        with pytest.raises((RedisConnectionError, OSError)):
            await (pipeline.execute() if piped else redis.get("a"))
        assert (REDIS.up, values(STORE_UP)["redis",]) == (False, 0)


async def test_a_postgres_that_does_not_answer_is_unavailable_until_one_answers(database: Database) -> None:
    absent = Database.connect("postgresql://headrace@127.0.0.1:1/none", connections=1)
    with pytest.raises(SQLAlchemyError):
        await execute(absent.relaxed, "SELECT 1")
    await absent.close()
    assert (POSTGRES.up, values(STORE_UP)["postgres",]) == (False, 0)
    with pytest.raises(SQLAlchemyError):
        await execute(database.relaxed, "SELECT nonsense")
    assert POSTGRES.up is False, "a statement that is refused shows nothing"
    await execute(database.relaxed, "SELECT 1")
    assert (POSTGRES.up, values(STORE_UP)["postgres",]) == (True, 1)


def test_a_store_that_was_not_asked_yet_is_absent() -> None:
    StoreMeasure("unasked")
    assert ("unasked",) not in values(STORE_UP)
