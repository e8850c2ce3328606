"""`REDIS_URL` and its forms: one server, one behind TLS, or whichever Sentinels say is the master.

    redis://:password@host:6379/0
    rediss://:password@host:6379/0?ssl_ca_certs=/path/ca.pem
    sentinel://:password@host1:26379,host2:26379/0?master=mymaster&sentinel_password=…

`sentinels://` is Sentinels and servers behind TLS. The `ssl_…` options are redis-py's. redis-py and kombu have forms of
their own for Sentinels, which differ; ours is turned into both.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from redis.asyncio import Redis
from redis.asyncio.sentinel import Sentinel
from redis.exceptions import RedisError, ResponseError

AWAY = (RedisError, OSError, TimeoutError, RuntimeError)
"""What redis-py raises while Redis is away; the last one is uvloop's, of a transport that was closed meanwhile."""


def is_spoilt(error: Exception) -> bool:
    """Tell whether a command failed over what its keys hold, rather than over the state that Redis is in.

    A Redis that is full, read-only, loading, busy, or allows too little refuses whatever the keys hold.
    """
    return type(error) is ResponseError and str(error).startswith(("WRONGTYPE", "ERR", "user_script"))


_SENTINEL_PORT = 26379
_SENTINEL_TIMEOUTS = {"socket_timeout": 2, "socket_connect_timeout": 1}
_REQUIREMENTS = {"required": ssl.CERT_REQUIRED, "optional": ssl.CERT_OPTIONAL, "none": ssl.CERT_NONE}


@dataclass(frozen=True, slots=True)
class _Sentinels:
    """What a URL of Sentinels says."""

    hosts: list[tuple[str, int]]
    master: str
    username: str | None
    password: str | None
    database: int
    sentinel_options: dict[str, Any]
    tls: dict[str, Any]

    @classmethod
    def parse(cls, url: str) -> Self:
        """Read a URL.

        Raises:
            ValueError: It has no `master`, or something in it is not what it should be.
        """
        parts = urlsplit(url)
        query = dict(parse_qsl(parts.query))
        credentials, _, hosts = parts.netloc.rpartition("@")
        username, _, password = credentials.partition(":")
        if "master" not in query:
            raise ValueError("a URL of Sentinels needs ?master=NAME")
        sentinel_options = {
            name: query[f"sentinel_{name}"] for name in ("username", "password") if f"sentinel_{name}" in query
        }
        return cls(
            hosts=[_host(host) for host in hosts.split(",")],
            master=query["master"],
            username=unquote(username) or None,
            password=unquote(password) or None,
            database=int(parts.path.strip("/") or 0),
            sentinel_options=sentinel_options,
            tls=_tls(query) if parts.scheme == "sentinels" else {},
        )


def _host(text: str) -> tuple[str, int]:
    host = urlsplit(f"//{text}")
    if not host.hostname:
        raise ValueError("a Sentinel has no host")
    return host.hostname, host.port or _SENTINEL_PORT


def _tls(query: dict[str, str]) -> dict[str, Any]:
    """Return the options of TLS; whoever answers must have a certificate, unless the URL says otherwise."""
    options: dict[str, Any] = {name: value for name, value in query.items() if name.startswith("ssl_")}
    options["ssl_cert_reqs"] = _REQUIREMENTS[options.get("ssl_cert_reqs", "required").lower().removeprefix("cert_")]
    if "ssl_check_hostname" in options:
        options["ssl_check_hostname"] = options["ssl_check_hostname"].lower() in {"true", "1", "yes"}
    else:
        options["ssl_check_hostname"] = options["ssl_cert_reqs"] is ssl.CERT_REQUIRED
    return options


def _has_sentinels(url: str) -> bool:
    return urlsplit(url).scheme in {"sentinel", "sentinels"}


def connect(url: str, **options: Any) -> Redis:
    """Return a client with redis-py's options.

    Raises:
        ValueError: It is no such URL.
    """
    if not _has_sentinels(url):
        return Redis.from_url(url, **options)
    found = _Sentinels.parse(url)
    tls = {"ssl": True, **found.tls} if found.tls else {}
    timeouts = {name: options[name] for name in ("socket_timeout", "socket_connect_timeout") if name in options}
    sentinel = Sentinel(  # type: ignore[no-untyped-call]
        found.hosts, sentinel_kwargs={**found.sentinel_options, **timeouts, **tls}
    )
    client: Redis = sentinel.master_for(
        found.master,
        redis_class=Redis,
        username=found.username,
        password=found.password,
        db=found.database,
        **options,
        **tls,
    )
    return client


def broker_settings(url: str) -> dict[str, Any]:
    """Return Celery's settings for a URL: `broker_url`, `broker_use_ssl` and `broker_transport_options`.

    Raises:
        ValueError: It is no such URL.
    """
    parts = urlsplit(url)
    if not _has_sentinels(url):
        tls = _tls(dict(parse_qsl(parts.query))) if parts.scheme == "rediss" else None
        plain = parts._replace(query="").geturl() if tls else url
        return {"broker_url": plain, "broker_use_ssl": tls, "broker_transport_options": {}}
    found = _Sentinels.parse(url)
    credentials = f"{quote(found.username or '', safe='')}:{quote(found.password or '', safe='')}@"
    if not (found.username or found.password):
        credentials = ""
    hosts = [f"sentinel://{credentials}{host}:{port}/{found.database}" for host, port in found.hosts]
    sentinel_options = {
        **found.sentinel_options,
        **_SENTINEL_TIMEOUTS,  # where options of its own are given, redis-py does not pass the servers' on
        **({"ssl": True, **found.tls} if found.tls else {}),
    }
    return {
        "broker_url": ";".join(hosts),
        "broker_use_ssl": found.tls or None,
        "broker_transport_options": {"master_name": found.master, "sentinel_kwargs": sentinel_options},
    }
