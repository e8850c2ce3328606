from __future__ import annotations

import ssl

import pytest
from redis.asyncio.sentinel import SentinelConnectionPool

from headrace.queue import create_celery
from headrace.redis_url import broker_settings, connect


def test_one_server_is_passed_on() -> None:
    found = broker_settings("redis://:secret@example.com:6380/3")
    assert found == {
        "broker_url": "redis://:secret@example.com:6380/3",
        "broker_use_ssl": None,
        "broker_transport_options": {},
    }


def test_whoever_answers_to_tls_must_have_a_certificate() -> None:
    found = broker_settings("rediss://:secret@example.com/0?ssl_ca_certs=/ca.pem")
    assert found["broker_url"] == "rediss://:secret@example.com/0"
    assert found["broker_use_ssl"] == {
        "ssl_ca_certs": "/ca.pem",
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


def test_sentinels_behind_tls() -> None:
    found = broker_settings("sentinels://one/0?master=m&ssl_ca_certs=/ca.pem")
    assert found["broker_use_ssl"]["ssl_cert_reqs"] is ssl.CERT_REQUIRED
    assert found["broker_transport_options"]["sentinel_kwargs"]["ssl"] is True


@pytest.mark.parametrize(
    "url", ["sentinel://one:26379/0", "sentinel://one:x/0?master=m", "sentinel://,/0?master=m", "http://one/"]
)
def test_what_is_no_url(url: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        connect(url)
