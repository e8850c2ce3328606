"""Commands that share a connection to Redis: each gets its own answer, and a broken connection is replaced."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import pytest
import uvloop
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, ReadOnlyError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from headrace.dev.valkey import EmbeddedValkey
from headrace.stores.namespace import NamespacedRedis
from headrace.stores.redis import connect_redis
from headrace.stores.redis_pipe import RedisPipe
from headrace.telemetry.metrics import STORE_SECONDS
from tests.loops import stand_still
from tests.metrics import Rise
from tests.waiting import PATIENCE, eventually


@pytest.fixture
async def redis(valkey: EmbeddedValkey) -> AsyncIterator[NamespacedRedis]:
    redis = connect_redis(valkey.url)
    await redis.flushdb()
    yield redis
    await redis.aclose()


async def test_each_command_gets_its_own_answer(redis: NamespacedRedis) -> None:
    await redis.set("text", "word")
    asked: list[Awaitable[Any]] = []
    for number in range(100):
        asked += [redis.get("text"), redis.incr("text"), redis.echo(str(number))]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert answers[0::3] == [b"word"] * 100
    assert all(isinstance(answer, ResponseError) for answer in answers[1::3])
    assert answers[2::3] == [str(number).encode() for number in range(100)]
    assert await redis.client_id() == await redis.client_id()


async def test_of_commands_that_are_sent_together_the_last_one_is_answered(redis: NamespacedRedis) -> None:
    opened = await RedisPipe.open(redis.connection_pool, patience_seconds=PATIENCE)
    await redis.set("text", "word")
    commands = [("INCR", "text"), ("SET", "text", "1"), ("INCR", "text")]
    answers = await asyncio.gather(opened.ask_all(commands), opened.ask("ECHO", "next"), opened.ask_all(commands[:1]))
    assert [*answers] == [2, b"next", 3]
    with pytest.raises(ResponseError):
        await opened.ask_all([*commands, ("HGET", "text", "x")])
    assert await opened.ask("GET", "text") == b"2"
    opened.close()


async def test_a_message_for_each_channel_is_published_in_one_round_trip(redis: NamespacedRedis) -> None:
    messages = {f"channel {number}": f"message {number}".encode() for number in range(100)}
    async with redis.pubsub(ignore_subscribe_messages=True) as pubsub:
        await pubsub.subscribe(*messages)
        for _ in messages:
            await pubsub.get_message(timeout=PATIENCE)
        asked = Rise(STORE_SECONDS)
        await redis.publish_all(messages)
        assert asked() == {("redis",): 1}
        heard: dict[str, bytes] = {}
        while len(heard) < len(messages):
            if (message := await pubsub.get_message(timeout=PATIENCE)) is not None:
                heard[message["channel"].decode()] = message["data"]
    assert heard == messages


async def test_a_value_of_many_pieces_comes_whole(redis: NamespacedRedis) -> None:
    value = b"x" * 5_000_000
    await redis.set("large", value)
    assert list(await asyncio.gather(*map(redis.get, ("large", "none", "large")))) == [value, None, value]


async def test_a_command_that_is_cancelled_keeps_the_order(redis: NamespacedRedis) -> None:
    first = asyncio.ensure_future(redis.echo("first"))
    second = asyncio.ensure_future(redis.echo("second"))
    await asyncio.sleep(0)
    first.cancel()
    assert await second == b"second"
    with contextlib.suppress(asyncio.CancelledError):
        await first
    assert await redis.echo("third") == b"third"


async def test_a_script_that_redis_does_not_know_is_loaded(redis: NamespacedRedis) -> None:
    double = redis.register_script("return ARGV[1] * 2")
    with pytest.raises(NoScriptError):
        await redis.evalsha(double.sha, 0, 4)
    assert await double(args=[4]) == 8


async def test_a_connection_that_ends_is_replaced(redis: NamespacedRedis, valkey: EmbeddedValkey) -> None:
    before = await redis.client_id()
    async with connect_redis(valkey.url) as other:
        await other.client_kill_filter(_id=str(before))
    with contextlib.suppress(RedisConnectionError):  # the end may not have come yet
        await redis.ping()
    assert len(set(await asyncio.gather(*(redis.client_id() for _ in range(5))))) == 1
    assert await redis.client_id() != before


async def test_a_command_without_an_answer_ends_its_connection(redis: NamespacedRedis) -> None:
    pipe = await RedisPipe.open(redis.connection_pool, patience_seconds=0.1)
    slow = asyncio.create_task(pipe.ask("BLPOP", "nothing", 30))
    behind = asyncio.create_task(pipe.ask("ECHO", "behind"))
    for waiting in (slow, behind):
        with pytest.raises(RedisTimeoutError):
            await waiting
    with pytest.raises(RedisConnectionError):
        await pipe.ask("ECHO", "late")


async def test_a_master_that_became_a_replica_is_left(redis: NamespacedRedis) -> None:
    before = await redis.client_id()
    await redis.replicaof("127.0.0.1", "1")
    try:
        with pytest.raises(ReadOnlyError):
            await redis.set("text", "word")
        assert await redis.client_id() != before
    finally:
        await redis.replicaof("NO", "ONE")


async def test_while_redis_is_unavailable_every_command_fails(own_valkey: EmbeddedValkey) -> None:
    async with connect_redis(own_valkey.url) as redis:
        await redis.ping()
        own_valkey.stop()
        try:
            answers = await asyncio.gather(*(redis.ping() for _ in range(5)), return_exceptions=True)
            assert all(isinstance(answer, RedisConnectionError) for answer in answers)
        finally:
            own_valkey.start()
        assert await redis.ping() is True


async def test_what_comes_unasked_goes_to_its_taker(redis: NamespacedRedis) -> None:
    pushed: list[list[Any]] = []
    pipe = await RedisPipe.open(redis.connection_pool, patience_seconds=1, on_push=pushed.append)
    pipe.tell("SUBSCRIBE", "news", "other")
    await eventually(lambda: len(pushed) == 2, "both subscriptions")
    assert await redis.publish("news", "first") == 1
    await eventually(lambda: len(pushed) == 3, "the message")
    assert pushed == [[b"subscribe", b"news", 1], [b"subscribe", b"other", 2], [b"message", b"news", b"first"]]
    assert await pipe.ask("ECHO", "asked") == b"asked"
    pipe.tell("NO-SUCH-COMMAND")
    assert isinstance(await asyncio.wait_for(pipe.ended, 5), ResponseError)


def test_an_answer_that_arrives_while_the_process_stands_still_is_read(valkey: EmbeddedValkey) -> None:
    async def ask() -> None:
        redis = connect_redis(valkey.url)
        pipe = await RedisPipe.open(redis.connection_pool, patience_seconds=0.5)
        answer = asyncio.create_task(pipe.ask("BLPOP", "nothing", 0.2))
        await stand_still(1.5)
        assert await answer is None
        pipe.close()
        await redis.aclose()

    uvloop.run(ask())
