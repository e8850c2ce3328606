"""Who sends a request: a key with its account, its scopes and its limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from headrace.errors import ModelNotFoundError
from headrace.keys.strength import Strength
from headrace.quotas.rules import Limits
from headrace.stores.connections import Row

KeyScope = Literal["admin", "usage:read", "keys:write", "webhooks:write", "metrics:read"]
"""What a key may do beyond asking models: administer all accounts; see its account's usage; manage its keys; read and
rotate the secrets of its webhooks."""


@dataclass(frozen=True, slots=True)
class Principal:
    """The key and account of a request, and their limits."""

    account_id: str
    """The account whose rows the request reads or changes: the key's, or the one that an administrator names."""
    key_id: str
    scopes: frozenset[str]
    limits: Limits
    account_limits: Limits
    expires_at: float | None
    """In Unix seconds; None is never."""
    key_hash: bytes
    """Of the key that was sent. For a while after a rotation, a key has two hashes."""
    name: str
    read_only: bool
    """Whether the key may send only requests that change nothing."""
    key_account_id: str
    """The key's account."""
    names_account: bool = False
    """Whether the request names the account that it reads, which an administrator's may."""

    @property
    def strength(self) -> Strength:
        """What the key may do: a key that it creates or changes may do no more."""
        return Strength(self.scopes, self.limits, self.expires_at, self.read_only)

    @property
    def is_admin(self) -> bool:
        """Whether the key administers all accounts."""
        return "admin" in self.scopes

    @property
    def view(self) -> str:
        """What a list shows to the request: the token of a page is valid for the same key and named account."""
        return f"{self.key_id} {self.account_id}" if self.names_account else self.key_id

    def reading(self, account: Row) -> Principal:
        """Return the principal of an administrator's request that reads the rows of `account`."""
        return replace(self, account_id=account.id, account_limits=Limits.parse(account.limits), names_account=True)

    def may_ask(self, model: str) -> bool:
        """Return whether the key may use a model, by its name, or an agent, by its id."""
        return self.limits.allows_model(model) and self.account_limits.allows_model(model)

    def check_may_ask(self, model: str, fallbacks: Sequence[str], *, within: str = "") -> None:
        """Check that the key may use a model and its fallbacks, which stand in the body's field `within`.

        Raises:
            ModelNotFoundError: It may not. The error is that of a model that does not exist.
        """
        for param, name in (("model", model), *((f"{within}fallbacks[{n}]", name) for n, name in enumerate(fallbacks))):
            if not self.may_ask(name):
                raise ModelNotFoundError.of(name, param=param)

    def may(self, scope: str) -> bool:
        """Return whether the key has a scope. An administrator's key has all."""
        return self.is_admin or scope in self.scopes
