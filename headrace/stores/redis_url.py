"""`REDIS_URL` and its forms: a server, a server behind TLS, or the master that Sentinels name.

    redis://:password@host:6379/0
    rediss://:password@host:6379/0?ssl_ca_certs=/path/ca.pem
    unix://:password@/path/redis.sock?db=0
    sentinel://:password@host1:26379,host2:26379/0?master=mymaster&sentinel_password=…

`sentinels://` is Sentinels and servers behind TLS. The `ssl_…` options are redis-py's. redis-py and kombu differ in the
forms and options that they know, so this module parses a URL and gives each its own form. It refuses other options.
"""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit

from redis.asyncio import Redis
from redis.asyncio.sentinel import Sentinel

from headrace.settings import SettingError
from headrace.stores.namespace import NamespacedRedis, prefix_of

_SENTINEL_PORT = 26379
_SENTINEL_TIMEOUTS = {"socket_timeout": 2, "socket_connect_timeout": 1}
_REQUIREMENTS = {"required": ssl.CERT_REQUIRED, "optional": ssl.CERT_OPTIONAL, "none": ssl.CERT_NONE}
_TRUTHS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
_TLS = frozenset(
    f"ssl_{name}"
    for name in ("ca_certs", "ca_path", "ca_data", "certfile", "keyfile", "password", "cert_reqs", "check_hostname")
)
_SENTINEL = frozenset({"master", "sentinel_username", "sentinel_password"})
# The options of each scheme.
_FORMS = {
    "redis": frozenset({"db"}),
    "rediss": frozenset({"db"}) | _TLS,
    "unix": frozenset({"db"}),
    "sentinel": _SENTINEL,
    "sentinels": _SENTINEL | _TLS,
}


def _split(url: str) -> tuple[SplitResult, dict[str, str]]:
    """Return a URL's parts and options. Errors quote no part that may be the password."""
    scheme, found, _ = url.partition("://")
    if not found or scheme not in _FORMS:
        raise SettingError(f"REDIS_URL must begin with {', '.join(f'{name}://' for name in _FORMS)}.")
    try:
        parts = urlsplit(url)
        query = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
        _ = scheme.startswith("sentinel") or parts.port
    except ValueError:
        raise SettingError(
            f"REDIS_URL is not a URL such as {scheme}://:password@host:6379/0; percent-encode a password's special "
            "characters."
        ) from None
    for name in query:
        if name not in _FORMS[scheme]:
            raise SettingError(
                f"REDIS_URL has the option {name!r}; those of {scheme}:// are {', '.join(sorted(_FORMS[scheme]))}."
            )
    if parts.fragment:
        raise SettingError("REDIS_URL has a '#': in a password, write it as %23.")
    return parts, query


def _database(text: str) -> int:
    if not re.fullmatch(r"[0-9]{0,9}", text):
        raise SettingError("REDIS_URL: the database must be a number, such as 0.")
    return int(text or 0)


@dataclass(frozen=True, slots=True)
class _Server:
    """What a URL of one server says."""

    address: str
    """The URL without its options and database."""
    path: str | None
    """Of its socket, percent-encoded."""
    database: int
    tls: dict[str, Any]

    @classmethod
    def parse(cls, url: str) -> Self:
        """Read a URL.

        Raises:
            SettingError: A part of it is not valid.
        """
        parts, query = _split(url)
        socket = parts.scheme == "unix"
        if socket and (not parts.path.strip("/") or parts.netloc.rpartition("@")[2]):
            raise SettingError("REDIS_URL: a socket must be named as unix:///path/redis.sock.")
        return cls(
            address=f"{parts.scheme}://{parts.netloc}{parts.path if socket else ''}",
            path=parts.path if socket else None,
            database=_database(query.get("db", "" if socket else parts.path.strip("/"))),
            tls=_tls(query) if parts.scheme == "rediss" else {},
        )

    @property
    def broker_url(self) -> str:
        """The URL as kombu has it."""
        if self.path is None:
            return f"{self.address}/{self.database}"
        return f"redis+socket{self.address.removeprefix('unix')}?virtual_host={self.database}"


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
            SettingError: It has no `master`, or a part of it is not valid.
        """
        parts, query = _split(url)
        credentials, _, hosts = parts.netloc.rpartition("@")
        username, _, password = credentials.partition(":")
        if not query.get("master"):
            raise SettingError("REDIS_URL: a URL of Sentinels needs ?master=NAME.")
        sentinel_options = {
            name: query[f"sentinel_{name}"] for name in ("username", "password") if f"sentinel_{name}" in query
        }
        return cls(
            hosts=[_host(host) for host in hosts.split(",")],
            master=query["master"],
            username=unquote(username) or None,
            password=unquote(password) or None,
            database=_database(parts.path.strip("/")),
            sentinel_options=sentinel_options,
            tls=_tls(query) if parts.scheme == "sentinels" else {},
        )


def _host(text: str) -> tuple[str, int]:
    host = urlsplit(f"//{text}")
    try:
        port = host.port
    except ValueError:
        raise SettingError("REDIS_URL: a Sentinel's port must be a number.") from None
    if not host.hostname:
        raise SettingError("REDIS_URL: a Sentinel has no host.")
    return host.hostname, port or _SENTINEL_PORT


def _tls(query: dict[str, str]) -> dict[str, Any]:
    """Return the options of TLS; the server must have a certificate, unless the URL says otherwise."""
    options: dict[str, Any] = {name: value for name, value in query.items() if name in _TLS}
    required = options.get("ssl_cert_reqs", "required").lower().removeprefix("cert_")
    if required not in _REQUIREMENTS:
        raise SettingError(f"REDIS_URL: ssl_cert_reqs must be one of {', '.join(_REQUIREMENTS)}.")
    options["ssl_cert_reqs"] = _REQUIREMENTS[required]
    checks = options.get("ssl_check_hostname", str(required == "required")).lower()
    if checks not in _TRUTHS:
        raise SettingError("REDIS_URL: ssl_check_hostname must be true or false.")
    options["ssl_check_hostname"] = _TRUTHS[checks]
    _check_files(options)
    return options


def _check_files(options: dict[str, Any]) -> None:
    """Load the certificates and the key once. A client would only load them when it connects, and then again and again.

    Raises:
        SettingError: A file cannot be read, or is not what its option says.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authorities = [options.get(f"ssl_{name}") for name in ("ca_certs", "ca_path", "ca_data")]
    certificate, key = options.get("ssl_certfile"), options.get("ssl_keyfile")
    names = "ssl_ca_certs, ssl_ca_path or ssl_ca_data"
    try:
        if any(authorities):
            context.load_verify_locations(*authorities)
        names = "ssl_certfile, ssl_keyfile or ssl_password"
        if certificate:
            # A password that is there, if empty, keeps OpenSSL from asking for one at the terminal.
            context.load_cert_chain(certificate, key, options.get("ssl_password", ""))
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        reason = (
            error.strerror if isinstance(error, OSError) and error.strerror else "it is not a valid certificate or key"
        )
        raise SettingError(f"REDIS_URL: {names} cannot be loaded: {reason}.") from None


def _has_sentinels(url: str) -> bool:
    return url.startswith(("sentinel://", "sentinels://"))


def connect(url: str, *, namespace: str | None = None, **options: Any) -> NamespacedRedis:
    """Return a client of a deployment's namespace with redis-py's options.

    Raises:
        SettingError: It is no such URL.
    """
    if not _has_sentinels(url):
        server = _Server.parse(url)
        made = NamespacedRedis.from_url(server.address, db=server.database, **options, **server.tls)
        return _placed(made, namespace)
    found = _Sentinels.parse(url)
    tls = {"ssl": True, **found.tls} if found.tls else {}
    timeouts = {name: options[name] for name in ("socket_timeout", "socket_connect_timeout") if name in options}
    sentinel = Sentinel(found.hosts, sentinel_kwargs={**found.sentinel_options, **timeouts, **tls})
    made = sentinel.master_for(
        found.master,
        redis_class=NamespacedRedis,
        username=found.username,
        password=found.password,
        db=found.database,
        **options,
        **tls,
    )
    return _placed(made, namespace)


def _placed(client: Redis, namespace: str | None) -> NamespacedRedis:
    assert isinstance(client, NamespacedRedis)  # redis-py's types do not say so
    client.prefix = prefix_of(namespace)
    return client


def broker_settings(url: str) -> dict[str, Any]:
    """Return Celery's settings for a URL: `broker_url`, `broker_use_ssl` and `broker_transport_options`.

    Raises:
        SettingError: It is no such URL.
    """
    if not _has_sentinels(url):
        server = _Server.parse(url)
        return {"broker_url": server.broker_url, "broker_use_ssl": server.tls or None, "broker_transport_options": {}}
    found = _Sentinels.parse(url)
    credentials = f"{quote(found.username or '', safe='')}:{quote(found.password or '', safe='')}@"
    if not (found.username or found.password):
        credentials = ""
    hosts = [
        f"sentinel://{credentials}{f'[{host}]' if ':' in host else host}:{port}/{found.database}"
        for host, port in found.hosts
    ]
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
