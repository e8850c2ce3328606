"""What one attempt used, as it goes into the ledger."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from typing import Any, Self

import orjson

from headrace.catalogue.known import Rates
from headrace.catalogue.models import Route
from headrace.formats.chat.usage import TokenUsage

# Characters of a user's name that the ledger keeps.
_LONGEST_NAME = 256


# Each attempt makes one of both classes. They are not frozen, which would take Python twice as long.


@dataclass(slots=True)
class Charge:
    """What the attempt that ended a job used: tokens, and USD if the model has a price."""

    tokens: int
    cost: Decimal | None

    def pack(self) -> bytes:
        """Return it as one line of JSON."""
        return orjson.dumps([self.tokens, None if self.cost is None else str(self.cost)])

    @classmethod
    def unpack(cls, line: bytes) -> Self:
        """Read such a line."""
        tokens, cost = orjson.loads(line)
        return cls(tokens, None if cost is None else Decimal(cost))


NOTHING = Charge(0, None)


@dataclass(slots=True)
class SpentUsage:
    """Tokens of one attempt: who answered, by which model, for which user of the client's.

    If the model has a price, `cost` is in USD, and `price` is that price as JSON, with where it is from.
    """

    provider: str
    model: str
    tokens: TokenUsage
    cost: Decimal | None = None
    price: str | None = None
    end_user: str | None = None

    @property
    def charge(self) -> Charge:
        """What its job is charged with."""
        return Charge(self.tokens.total_tokens, self.cost)


def spent_on(
    route: Route, tokens: TokenUsage, request: Mapping[str, Any], *, answered: str, factor: Decimal | None = None
) -> SpentUsage:
    """Return what an answer to a request used, at the route's price of this moment, times `factor`.

    `answered` is the model that answered, as its provider said.
    """
    rates = route.rates(tokens.prompt_tokens)
    cost = None if rates is None else rates.cost(tokens) * (1 if factor is None else factor)
    price = None if rates is None else _render_price(rates, factor)
    return SpentUsage(route.provider_name, _storable(answered), tokens, cost, price, _end_user(request))


@lru_cache(maxsize=4096)
def _render_price(rates: Rates, factor: Decimal | None) -> str:
    price = {
        "input": str(rates.input),
        "cached_input": str(rates.cached_input),
        "cache_write": str(rates.cache_write),
        "output": str(rates.output),
        "source": rates.source,
    }
    special = {"input_audio": rates.input_audio, "output_audio": rates.output_audio, "factor": factor}
    price |= {name: str(value) for name, value in special.items() if value is not None}
    return orjson.dumps(price).decode()


def _end_user(request: Mapping[str, Any]) -> str | None:
    name = request.get("safety_identifier") or request.get("user")
    return _storable(name) if isinstance(name, str) else None


def _storable(name: str) -> str:
    # Postgres has no place for U+0000 in a text.
    return name.replace("\0", "\N{REPLACEMENT CHARACTER}")[:_LONGEST_NAME]
