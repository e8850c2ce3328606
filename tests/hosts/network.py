"""Hosts as network namespaces, each on a cable of its own to a router, which can drop what one host sends to another.

Everything is made with Debian's iproute2, in namespaces of this process's own: nothing in the machine's own network
changes. A packet that the router drops is lost without a word, as behind a broken switch.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

_CLONE_NEWNET = 0x40000000
_NAMESPACES = Path("/run/netns")
_PREFIX = "headrace-"
_NET = "10.213"
VIRTUAL = f"{_NET}.0.100"
"""The address under which parts know Postgres; the router knows at which host it is."""

_libc = ctypes.CDLL(None, use_errno=True)


class NoNamespacesError(Exception):
    """This machine or user cannot make network namespaces; the message says why."""


def _ip(*arguments: str) -> str:
    result = subprocess.run(["ip", *arguments], check=False, capture_output=True, text=True)
    if result.returncode != 0:
        raise NoNamespacesError(f"ip {' '.join(arguments)}: {result.stderr.strip()}")
    return result.stdout


def check() -> None:
    """Return if hosts can be made here.

    Raises:
        NoNamespacesError: They cannot.
    """
    if os.name != "posix" or not hasattr(os, "geteuid") or os.geteuid() != 0:
        raise NoNamespacesError("it needs root, who alone may make network namespaces.")
    if shutil.which("ip") is None:
        raise NoNamespacesError("it needs `ip netns`, which is in Debian's package iproute2.")
    probe = f"{_PREFIX}{os.getpid()}-probe"
    _ip("netns", "add", probe)
    _ip("netns", "del", probe)


class Network:
    """Some hosts and the router between them."""

    def __init__(self, hosts: Sequence[str]) -> None:
        """Say which; `made` makes them."""
        self._hosts = {host: f"{_NET}.{number}" for number, host in enumerate(hosts, 1)}
        self._prefix = f"{_PREFIX}{os.getpid()}-"
        self._dropped: set[tuple[str, str]] = set()

    @contextlib.contextmanager
    def made(self) -> Iterator[Network]:
        """Make the hosts, and remove them and the processes that are left on them afterwards.

        What a run left that was killed is removed first.
        """
        for name in _names():
            if not Path("/proc", name.split("-")[1]).exists():
                _remove(name)
        try:
            self._make()
            yield self
        finally:
            for name in _names():
                if name.startswith(self._prefix):
                    _remove(name)

    def address(self, host: str) -> str:
        """Return a host's address."""
        return f"{self._hosts[host]}.2"

    @contextlib.contextmanager
    def inside(self, host: str) -> Iterator[None]:
        """Have what this thread starts, processes, threads and sockets, be on a host while within."""
        with Path("/proc/thread-self/ns/net").open() as own:
            self.enter(host)
            try:
                yield
            finally:
                _enter(own.fileno())

    def enter(self, host: str) -> None:
        """Put this thread on a host for good."""
        with (_NAMESPACES / self._name(host)).open() as namespace:
            _enter(namespace.fileno())

    def drop(self, source: str, destination: str) -> None:
        """Lose every packet that one host sends to another."""
        self._dropped.add((source, destination))
        self._rule("add", source, destination)

    def mend(self) -> None:
        """Lose no packet any more, and plug every cable in."""
        for source, destination in self._dropped:
            self._rule("del", source, destination)
        self._dropped.clear()
        for host in self._hosts:
            self.plug(host)

    def plug(self, host: str, *, out: bool = False) -> None:
        """Plug a host's cable in, or pull it out."""
        _ip("-n", self._name("router"), "link", "set", host, "down" if out else "up")

    def move_virtual(self, host: str) -> None:
        """Have packets for the virtual address go to a host."""
        _ip("-n", self._name("router"), "route", "replace", VIRTUAL, "via", self.address(host))

    def processes(self, host: str) -> list[int]:
        """Return the ids of the processes on a host."""
        return _processes(self._name(host))

    def _name(self, host: str) -> str:
        return self._prefix + host

    def _rule(self, verb: str, source: str, destination: str) -> None:
        target = VIRTUAL if destination == "virtual" else self.address(destination)
        origin = VIRTUAL if source == "virtual" else self.address(source)
        _ip("-n", self._name("router"), "rule", verb, "from", origin, "to", target, "blackhole", "priority", "100")

    def _make(self) -> None:
        router = self._name("router")
        _ip("netns", "add", router)
        _ip("-n", router, "link", "set", "lo", "up")
        _ip("netns", "exec", router, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
        for host, net in self._hosts.items():
            name = self._name(host)
            _ip("netns", "add", name)
            _ip("link", "add", "up0", "netns", name, "type", "veth", "peer", "name", host, "netns", router)
            _ip("-n", name, "address", "add", f"{net}.2/24", "dev", "up0")
            _ip("-n", router, "address", "add", f"{net}.1/24", "dev", host)
            for namespace, link in ((name, "lo"), (name, "up0"), (router, host)):
                _ip("-n", namespace, "link", "set", link, "up")
            _ip("-n", name, "route", "add", "default", "via", f"{net}.1")
            if host.startswith("postgres"):
                _ip("-n", name, "address", "add", f"{VIRTUAL}/32", "dev", "lo")


def _names() -> list[str]:
    """Return the namespaces of all runs: the prefix, the process's id, the host."""
    names = [line.split()[0] for line in _ip("netns", "list").splitlines()]
    return [name for name in names if name.startswith(_PREFIX)]


def _processes(name: str) -> list[int]:
    own = os.getpid()
    return [int(pid) for pid in _ip("netns", "pids", name).split() if int(pid) != own]


def _remove(name: str) -> None:
    with contextlib.suppress(NoNamespacesError):
        for pid in _processes(name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        _ip("netns", "del", name)


def _enter(namespace: int) -> None:
    if _libc.setns(namespace, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")
