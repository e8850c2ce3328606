"""`DATABASE_URL` in all forms that libpq documents, parsed by libpq itself.

postgresql://user:password@host:5432/database?sslmode=verify-full
postgresql://user@host1,host2:5433/database?target_session_attrs=read-write
postgresql://user@%2Frun%2Fpostgresql/database
host=/run/postgresql user=me dbname=database
"""

from __future__ import annotations

import ipaddress
import re
from typing import Any

import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from headrace.settings import SettingError

# These detect half-open connections within about ten seconds. The kernel's defaults take two hours.
_DEFAULTS: dict[str, Any] = {
    "connect_timeout": "5",
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",
}
_SCHEMES = {"postgresql", "postgres"}
# Not a directory, so libpq fails to find a socket there at once.
_NOWHERE = "/dev/null"
# libpq's errors that quote the name of an option, and so no secret.
_NAMES_AN_OPTION = ("invalid URI query parameter", "invalid connection option")


def connection_parameters(database_url: str, part: str = "cli") -> dict[str, Any]:
    """Return libpq's parameters for a connection of a part, such as `worker`. The URL's own parameters win.

    Raises:
        SettingError: libpq does not accept the URL or one of its options.
    """
    scheme = re.match(r"\s*([\w+.-]+)://", database_url)
    if scheme and scheme[1] not in _SCHEMES:
        raise SettingError(f"DATABASE_URL begins with {scheme[1]}://, and must begin with postgresql://.")
    try:
        found = conninfo_to_dict(database_url)
    except psycopg.ProgrammingError as error:
        raise SettingError(f"DATABASE_URL {_reason(str(error))}.") from error
    _check_values(found)
    return {**_DEFAULTS, "fallback_application_name": f"headrace {part}", **found, "client_encoding": "UTF8"}


def _check_values(parameters: dict[str, Any]) -> None:
    """Have libpq check the values as it does before it connects, without a server's address."""
    host, address = str(parameters.get("host") or ""), str(parameters.get("hostaddr") or "")
    _check_hosts(host, address)
    given = {name: value for name, value in parameters.items() if name not in {"host", "hostaddr"}}
    problem = _connect_nowhere(given, len((host or address).split(",")))
    if not (host or address) and (ports := re.match(r"could not match (\d+) port numbers", problem)):
        problem = _connect_nowhere(given, int(ports[1]))  # a service file, or PGHOST and PGPORT, name several servers
    bad_port = "invalid port number" in problem
    if problem and (bad_port or not problem.startswith("connection to server")):
        raise SettingError(f"DATABASE_URL: {problem.splitlines()[0]}.")
    for name in ("keepalives", *_DEFAULTS):
        if name in parameters and not re.fullmatch(r"\s*-?\d+\s*", str(parameters[name])):
            raise SettingError(f"DATABASE_URL: {name} must be a whole number.")


def _check_hosts(host: str, address: str) -> None:
    hosts, addresses = host.split(","), address.split(",")
    if any("@" in name[1:] for name in hosts):  # a name that begins with it is an abstract socket's
        raise SettingError("DATABASE_URL has a host with an '@': in a password, write it as %40.")
    if host and address and len(hosts) != len(addresses):
        raise SettingError(f"DATABASE_URL: host has {len(hosts)} entries, and hostaddr {len(addresses)}.")
    for given in filter(None, addresses):
        try:
            ipaddress.ip_address(given)
        except ValueError:
            raise SettingError("DATABASE_URL: hostaddr must be an IP address.") from None


def _connect_nowhere(parameters: dict[str, Any], hosts: int) -> str:
    """Return libpq's error for a connection to as many hosts that do not exist."""
    conninfo = make_conninfo("", **{**parameters, "host": ",".join([_NOWHERE] * hosts)})
    attempt = pq.PGconn.connect_start(conninfo.encode())
    problem = attempt.error_message.decode(errors="replace").strip()
    attempt.finish()
    return problem


def _reason(message: str) -> str:
    """Return the reason of libpq's error, without the part of the URL that it quotes, which may be the password."""
    message = message.strip()
    if message.startswith('missing "="'):
        return "is no URL like postgresql://user:password@host:5432/database"
    if message.startswith(_NAMES_AN_OPTION):
        return f"has an {message}"
    reason, _, _ = message.partition(': "')
    return f"is malformed: {reason}"
