"""The limits of a key or an account. Pure."""

from __future__ import annotations

import fnmatch
from decimal import Decimal
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

from headrace.formats.chat.request import Webhook

# The largest integer that a double has exactly: numbers are doubles in Lua and JavaScript.
_MOST = 2**53 - 1
_Count = Annotated[int, Field(ge=1, le=_MOST)]
_Pattern = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[^\x00]*$")]


def _decimal(value: object) -> object:
    """Return a number as it was written: 0.1 is a tenth."""
    return Decimal(str(value)) if isinstance(value, int | float) and not isinstance(value, bool) else value


_Budget = Annotated[
    Decimal,
    BeforeValidator(_decimal),
    Field(ge=0, le=1_000_000_000, decimal_places=9, strict=False),
    PlainSerializer(lambda budget: f"{budget.normalize():f}", return_type=str),
]


class Limits(BaseModel):
    """The limits of one key, or of all keys of an account together. A field that is left out has no limit."""

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        frozen=True,
        json_schema_extra={"examples": [{"requests_per_minute": 60, "monthly_budget": "100", "models": ["gpt-*"]}]},
    )

    requests_per_minute: _Count | None = Field(default=None, description="Lines of batches wait for it")
    tokens_per_minute: _Count | None = Field(
        default=None, description="Estimated at the start, settled at the end; lines of batches wait for it"
    )
    jobs_in_flight: _Count | None = Field(
        default=None, description="Requests whose client waits, at one time; not lines of batches"
    )
    jobs_queued: _Count | None = Field(
        default=None, description="Background jobs that have not ended, at one time; not lines of batches"
    )
    daily_budget: _Budget | None = Field(default=None, description="USD for a day in UTC")
    monthly_budget: _Budget | None = Field(default=None, description="USD for a month in UTC")
    models: Annotated[list[_Pattern], Field(max_length=100)] | None = Field(
        default=None, description="Names or patterns of the models that may be asked; an agent's is its id"
    )
    wait: bool | None = Field(
        default=None, description="Background jobs beyond a rate wait in the queue instead of being refused"
    )
    alert_webhook: Webhook | None = Field(
        default=None, description="An http or https URL that gets a webhook when 50, 80 and 100 % of a budget are spent"
    )

    @classmethod
    def parse(cls, document: object) -> Self:
        """Return the limits stored in a row."""
        return cls.model_validate(document) if document else cls()

    def render(self) -> dict[str, Any]:
        """Return the limits that are set, as JSON."""
        return self.model_dump(mode="json", exclude_none=True)

    @property
    def rates(self) -> Limits:
        """The limits by the minute alone."""
        return Limits(requests_per_minute=self.requests_per_minute, tokens_per_minute=self.tokens_per_minute)

    @property
    def has_budget(self) -> bool:
        """Whether a request's model must have a price."""
        return self.daily_budget is not None or self.monthly_budget is not None

    def allows_model(self, name: str) -> bool:
        """Return whether the limits allow a model."""
        return self.models is None or any(fnmatch.fnmatchcase(name, pattern) for pattern in self.models)
