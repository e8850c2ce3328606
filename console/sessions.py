"""Sessions: who is signed in. A session's API key stays in this process; the browser has a cookie and no more.

Sessions end with the process, by signing out, and after hours without a page.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# Seconds without a page after which a session ends. A page that refreshes itself does not count.
_IDLE_SECONDS = 12 * 3600.0
# Sessions of a process at most. Beyond it the account that has the most loses the one that has been idle longest.
_MOST_SESSIONS = 10_000


@dataclass(slots=True)
class Session:
    """One signed-in browser."""

    key: str = field(repr=False)
    account: Mapping[str, Any]
    """What `GET /account` answered to the key: the account, and the key's scopes."""
    csrf: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)
    """The token that every form sends back."""
    reading: str | None = None
    """The id of another account whose rows an administrator reads, or None."""
    messages: list[tuple[str, str]] = field(default_factory=list)
    """What the next page says: its kind (`ok` or `error`) and text."""
    used_at: float = field(default_factory=time.monotonic)

    @property
    def scopes(self) -> frozenset[str]:
        """The scopes of the key."""
        return frozenset(self.account["key"]["scopes"])

    @property
    def is_admin(self) -> bool:
        """Whether the key sees all accounts."""
        return "admin" in self.scopes

    def may(self, scope: str) -> bool:
        """Return whether the key has a scope."""
        return scope in self.scopes or self.is_admin

    @property
    def may_act(self) -> bool:
        """Whether the pages show what changes something: not for a key that only reads, nor in another account."""
        return not self.account["key"]["read_only"] and self.reading is None

    def say(self, text: str, kind: str = "ok") -> None:
        """Show a message on the next page."""
        self.messages.append((kind, text))

    def take_messages(self) -> list[tuple[str, str]]:
        """Return the messages, once."""
        taken, self.messages = self.messages, []
        return taken


class Sessions:
    """All sessions of the process, by the hash of their cookie's token."""

    def __init__(self) -> None:
        self._sessions: dict[bytes, Session] = {}

    def start(self, session: Session) -> str:
        """Keep a session and return the token for its cookie."""
        if len(self._sessions) >= _MOST_SESSIONS:
            self._end_one()
        token = secrets.token_urlsafe(32)
        self._sessions[_hash(token)] = session
        return token

    def find(self, token: str, *, refresh: bool) -> Session | None:
        """Return the session of a token. Unless a page only refreshes itself, the session is used."""
        session = self._sessions.get(_hash(token))
        if session is None:
            return None
        now = time.monotonic()
        if now - session.used_at > _IDLE_SECONDS:
            self.end(token)
            return None
        if not refresh:
            session.used_at = now
        return session

    def end(self, token: str) -> None:
        """End the session of a token."""
        self._sessions.pop(_hash(token), None)

    def _end_one(self) -> None:
        accounts = Counter(session.account["id"] for session in self._sessions.values())
        [(account, _)] = accounts.most_common(1)
        idle = [
            (session.used_at, known) for known, session in self._sessions.items() if session.account["id"] == account
        ]
        del self._sessions[min(idle)[1]]


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
