from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import pytest
from kombu.transport.redis import Channel
from redis.asyncio.sentinel import SentinelConnectionPool

from headrace.queue import create_celery
from headrace.settings import SettingError
from headrace.stores.redis_url import broker_settings, connect

CA = Path(__file__).parents[2] / "certificates" / "ca.pem"


def kombu_parameters(url: str) -> dict[str, Any]:
    """Return the parameters that kombu connects with."""
    channel = Channel.__new__(Channel)
    channel.connection = create_celery(url).connection_for_read().transport
    parameters: dict[str, Any] = channel._connparams()
    return parameters


def test_one_server_is_passed_on() -> None:
    found = broker_settings("redis://:secret@example.com:6380/3")
    assert found == {
        "broker_url": "redis://:secret@example.com:6380/3",
        "broker_use_ssl": None,
        "broker_transport_options": {},
    }


def test_a_server_with_tls_must_have_a_certificate() -> None:
    found = broker_settings(f"rediss://:secret@example.com/0?ssl_ca_certs={CA}")
    assert found["broker_url"] == "rediss://:secret@example.com/0"
    assert found["broker_use_ssl"] == {
        "ssl_ca_certs": str(CA),
        "ssl_cert_reqs": ssl.CERT_REQUIRED,
        "ssl_check_hostname": True,
    }
    lax = broker_settings("rediss://example.com/0?ssl_cert_reqs=none")["broker_use_ssl"]
    assert lax == {"ssl_cert_reqs": ssl.CERT_NONE, "ssl_check_hostname": False}


def test_sentinels_are_told_to_both_in_their_own_way() -> None:
    url = "sentinel://me:p%40ss@one:26380,two/4?master=mymaster&sentinel_password=guard"
    found = broker_settings(url)
    assert found["broker_url"] == "sentinel://me:p%40ss@one:26380/4;sentinel://me:p%40ss@two:26379/4"
    patience = {"socket_timeout": 2, "socket_connect_timeout": 1}
    assert found["broker_transport_options"] == {
        "master_name": "mymaster",
        "sentinel_kwargs": {"password": "guard", **patience},
    }
    pool = connect(url, socket_timeout=2).connection_pool
    assert isinstance(pool, SentinelConnectionPool)
    assert pool.service_name == "mymaster"
    kept = pool.connection_kwargs
    assert (kept["username"], kept["password"], kept["db"], kept["socket_timeout"]) == ("me", "p@ss", 4, 2)
    options = create_celery(url).conf.broker_transport_options
    assert options["master_name"] == "mymaster"
    assert options["socket_timeout"] == 5, "ours stay"


def test_sentinels_by_ipv6_addresses() -> None:
    url = "sentinel://[::1],[fd00::2]:26380/0?master=m"
    assert broker_settings(url)["broker_url"] == "sentinel://[::1]:26379/0;sentinel://[fd00::2]:26380/0"


def test_sentinels_behind_tls() -> None:
    found = broker_settings(f"sentinels://one/0?master=m&ssl_ca_certs={CA}")
    assert found["broker_use_ssl"]["ssl_cert_reqs"] is ssl.CERT_REQUIRED
    assert found["broker_transport_options"]["sentinel_kwargs"]["ssl"] is True


@pytest.mark.parametrize(
    ("url", "database"),
    [
        ("redis://", 0),
        ("redis://h", 0),
        ("redis://h/2", 2),
        ("redis://h/?db=3", 3),
        ("redis://h/1?db=3", 3),
        ("redis://me:p%40ss@[::1]:6380/1", 1),
        ("rediss://:p%40ss@h:6380/1?ssl_cert_reqs=none", 1),
        ("unix:///run/my%20redis.sock?db=1", 1),
        ("unix:///run/redis.sock", 0),
        ("unix://me:p%40ss@/run/redis.sock?db=4", 4),
        ("unix://:p%40ss@/run/redis.sock", 0),
    ],
)
def test_redis_py_and_kombu_read_the_same(url: str, database: int) -> None:
    ours = connect(url).connection_pool.connection_kwargs
    kombus = kombu_parameters(url)
    assert ours["db"] == kombus["db"] == database
    for name in ("username", "password", "path"):
        assert ours.get(name) == kombus.get(name), name
    if "path" not in ours:
        assert ours.get("host", "127.0.0.1") == kombus["host"]
        assert ours.get("port", 6379) == kombus["port"]


REFUSED = {
    "http://one/": "begin with redis://",
    "127.0.0.1:6379": "begin with redis://",
    "localhost:6379/0": "begin with redis://",
    "redis:localhost": "begin with redis://",
    "hidden": "begin with redis://",
    "redis://:hidden@h/0?health_check_interval=30": "health_check_interval",
    "redis://:hidden@h/0?socket_timeout=1": "socket_timeout",
    "redis://:hidden@h/0?ssl_ca_certs=/ca.pem": "ssl_ca_certs",
    "redis://:hidden@h/0?db": "redis://:password@host",
    "redis://:hidden@h/zero": "the database",
    "redis://:hidden@h/0/1": "the database",
    "redis://:hidden@h/?db=x": "the database",
    "redis://:hidden@h:port/0": "redis://:password@host",
    "redis://:hid/den@h/0": "redis://:password@host",
    "redis://:hid#den@h/0": "redis://:password@host",
    "redis://:hidden@[::1/0": "redis://:password@host",
    "rediss://:hidden@h/0?ssl_cert_reqs=maybe": "ssl_cert_reqs",
    "rediss://:hidden@h/0?ssl_check_hostname=maybe": "ssl_check_hostname",
    "unix://": "unix:///path",
    "unix://run/redis.sock": "unix:///path",
    "unix:///run/redis.sock?virtual_host=1": "virtual_host",
    "rediss://:hidden@h/0?ssl_ca_certs=/hidden/ca.pem": "ssl_ca_certs",
    "rediss://:hidden@h/0?ssl_certfile=/hidden/cert.pem&ssl_keyfile=/hidden/key.pem": "ssl_certfile",
    "rediss://:hidden@h/0?ssl_ca_data=hidden": "ssl_ca_data",
    "redis://:hidden@h/99999999999999999999": "the database",
    "sentinel://one:26379/0": "master",
    "sentinel://one:x/0?master=m": "port",
    "sentinel://,/0?master=m": "host",
    "sentinel://one/0?master=m&socket_timeout=1": "socket_timeout",
    "sentinel://one/x?master=m": "the database",
}


@pytest.mark.parametrize("url", REFUSED)
def test_what_not_every_part_knows_is_refused_in_one_line(url: str) -> None:
    for read in (connect, broker_settings):
        with pytest.raises(SettingError) as refused:
            read(url)
        message = str(refused.value)
        assert message.startswith("REDIS_URL")
        assert REFUSED[url] in message
        assert "\n" not in message
        assert "hid" not in message
