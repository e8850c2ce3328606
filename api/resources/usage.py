"""Usage: sums by time and group, as JSON and CSV, and monthly statements."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from api.http.authentication import Authenticated, UsageReader
from api.http.errors import render_json
from api.http.pages import PageToken, read_page_token, render_page_token
from api.http.query import DESCRIBED_METADATA, MetadataFilter, list_of
from api.http.request import ApiRequest
from headrace.errors import NotFoundError, PermissionDeniedError, invalid_parameter, shorten
from headrace.formats.chat.validation import check_text
from headrace.keys.accounts import find_account
from headrace.keys.principal import Principal
from headrace.stores.database import Database
from headrace.usage.queries import STATEMENT_COLUMNS, ask, known_metadata_keys, render_amounts, statement_of_month
from headrace.usage.question import GROUPS, Bucket, Question, parse_groups, parse_zone
from headrace.usage.spreadsheet import render_rows

router = APIRouter(prefix="/usage", tags=["Usage"])

# Seconds before the end at which a question without a start begins.
_DEFAULT_SECONDS = 30 * 86_400
# Rows of one answer at most.
_MOST_ROWS = 10_000
_ALL_ACCOUNTS = "all"
_GROUPED = "Only present if `group_by` names it"
_OF_ADMINISTRATORS = "For administrators: the name of an account, or `all`, the default"
_PERCENTILES = "Only present with `latency=true`: percentiles, in seconds from the job's creation"


class Percentiles(BaseModel):
    """How long answers took, in seconds, accurate to 9 %; null without answers."""

    p50: float | None
    p90: float | None
    p95: float | None
    p99: float | None


class UsageBucket(BaseModel):
    """The usage of one group from `start_time` to just before `end_time`, in Unix seconds.

    Requests, their tokens and their cost are those of jobs that have ended, with later corrections. Discarded attempts,
    such as those that a provider interrupted before a retry, count in the `discarded_…` fields alone.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "start_time": 1763856000,
                "end_time": 1763942400,
                "model": "demo",
                "requests": 2,
                "prompt_tokens": 300,
                "completion_tokens": 40,
                "cached_tokens": 100,
                "cache_write_tokens": 0,
                "reasoning_tokens": 0,
                "prompt_audio_tokens": 0,
                "completion_audio_tokens": 0,
                "total_tokens": 340,
                "estimated_requests": 0,
                "unpriced_requests": 0,
                "streamed_requests": 1,
                "discarded_attempts": 0,
                "discarded_tokens": 0,
                "queue_ms": 14,
                "cost": "0.00115",
                "discarded_cost": "0",
            }
        },
        extra="allow",
    )

    start_time: int
    end_time: int
    account: str | None = Field(default=None, description=f"The account's name. {_GROUPED}")
    key: str | None = Field(default=None, description=f"The API key's id. {_GROUPED}")
    model: str | None = Field(default=None, description=f"As the request names it. {_GROUPED}")
    answered_model: str | None = Field(default=None, description=f"As the provider names it. {_GROUPED}")
    provider: str | None = Field(default=None, description=f"The provider that answered. {_GROUPED}")
    agent: str | None = Field(default=None, description=f"The agent's id. {_GROUPED}")
    batch: str | None = Field(default=None, description=f"The batch's id. {_GROUPED}")
    tier: str | None = Field(default=None, description=f"`priority`, `default`, `flex` or `batch`. {_GROUPED}")
    user: str | None = Field(default=None, description=f"The request's `user` or `safety_identifier`. {_GROUPED}")
    requests: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = Field(description="Part of `prompt_tokens`")
    cache_write_tokens: int = Field(description="Part of `prompt_tokens`")
    reasoning_tokens: int = Field(description="Part of `completion_tokens`")
    prompt_audio_tokens: int = Field(description="Part of `prompt_tokens`")
    completion_audio_tokens: int = Field(description="Part of `completion_tokens`")
    total_tokens: int
    estimated_requests: int = Field(
        description="Requests whose tokens the provider did not report: Headrace estimated them"
    )
    unpriced_requests: int = Field(description="Requests to models without a price, which `cost` does not include")
    streamed_requests: int
    discarded_attempts: int = Field(description="Attempts whose answer was discarded")
    discarded_tokens: int = Field(description="Tokens of these attempts")
    queue_ms: int = Field(description="Milliseconds that all requests together waited for a worker")
    cost: str = Field(description="USD, exact")
    discarded_cost: str = Field(description="USD, exact: the cost of attempts whose answer was discarded")
    first_token_seconds: Percentiles | None = Field(default=None, description=_PERCENTILES)
    duration_seconds: Percentiles | None = Field(default=None, description=_PERCENTILES)


class UsageList(BaseModel):
    """Usage in order of time, then of groups, without entries for times without usage."""

    object: Literal["list"]
    data: list[UsageBucket]
    has_more: bool
    next_page: str | None = Field(description="For `page`")


_Time = Annotated[int | None, Query(ge=0, le=2**33)]
_ONLY = "Only these; may be repeated"


@router.get(
    "",
    summary="Get usage",
    responses={200: {"model": UsageList, "content": {"text/csv": {}}}},
    openapi_extra=DESCRIBED_METADATA,
)
async def get_usage(
    request: ApiRequest,
    principal: Authenticated,
    metadata: MetadataFilter,
    group_by: Annotated[
        list[str],
        list_of(
            "group_by", f"The fields to group by: {', '.join(GROUPS)}, `metadata.<key>`; also with commas", commas=True
        ),
    ],
    model: Annotated[list[str], list_of("model", _ONLY)],
    provider: Annotated[list[str], list_of("provider", _ONLY)],
    key: Annotated[list[str], list_of("key", _ONLY)],
    agent: Annotated[list[str], list_of("agent", _ONLY)],
    batch: Annotated[list[str], list_of("batch", _ONLY)],
    tier: Annotated[list[str], list_of("tier", _ONLY)],
    user: Annotated[list[str], list_of("user", _ONLY)],
    start: Annotated[_Time, Query(description="Unix seconds; 30 days before the end by default")] = None,
    end: Annotated[_Time, Query(description="Unix seconds, exclusive; now by default")] = None,
    bucket: Annotated[
        Bucket | None, Query(description="In `time_zone`; by default the whole time is one bucket")
    ] = None,
    time_zone: Annotated[str | None, Query(description="As in `Europe/Berlin`; UTC by default")] = None,
    account: Annotated[str | None, Query(description=_OF_ADMINISTRATORS)] = None,
    latency: Annotated[bool, Query(description="Add percentiles of how long answers took")] = False,
    format: Annotated[Literal["json", "csv"], Query()] = "json",  # noqa: A002  (the parameter's name)
    limit: Annotated[int, Query(ge=1, le=_MOST_ROWS)] = 1000,
    page: PageToken = None,
) -> Response:
    """Return the usage of jobs, by the time of their end.

    A key sees its own usage, a key with the scope `usage:read` its account's, and an administrator all accounts'.
    """
    asked = [start, end, bucket, time_zone, group_by, model, provider, key, agent, batch, tier, user, account]
    query = repr([*asked, sorted(metadata.items()), principal.view])
    position, until = read_page_token(page, query) if page is not None else (0, end)
    until = int(time.time()) + 1 if until is None else until  # includes the current second
    filters = {"model": model, "provider": provider, "key": key, "agent": agent, "batch": batch, "tier": tier}
    only = _only({**filters, "user": user}, metadata)
    database = request.state["database"]
    whose, own = await visible(database, principal, account)
    groups = parse_groups(group_by)
    question = Question(
        account_ids=whose,
        start=max(0, until - _DEFAULT_SECONDS) if start is None else start,
        end=until,
        bucket=bucket,
        zone=parse_zone(time_zone),
        groups=groups,
        only=narrow(only, own),
        metadata_keys=await known_metadata_keys(database) if "metadata." in query else (),
    )
    if end is None and start is not None and start >= until:
        raise invalid_parameter("start", "it is not before the end, which is now")
    question.check(latency=latency)
    rows = await ask(database, question, limit=limit + 1, offset=position, latency=latency)
    next_page = render_page_token(query, position + limit, until) if len(rows) > limit else None
    data = [render_amounts(row) for row in rows[:limit]]
    if format == "csv":
        return render_csv(data, ["start_time", "end_time", *groups], next_page)
    document = {"object": "list", "data": data, "has_more": next_page is not None, "next_page": next_page}
    return render_json(document)


def _only(filters: Mapping[str, Sequence[str]], metadata: Mapping[str, str]) -> dict[str, Sequence[str]]:
    """Return the values that a query narrows each field to.

    Raises:
        InvalidRequestError: Postgres cannot store a value.
    """
    only = {name: values for name, values in filters.items() if values}
    only |= {f"metadata.{name}": [value] for name, value in metadata.items()}
    for name, values in only.items():
        for value in values:
            check_text(value, name)
    return only


def narrow(only: Mapping[str, Sequence[str]], own: Mapping[str, Sequence[str]]) -> dict[str, Sequence[str]]:
    """Return the filters that a question asks for, limited to the values that the key may see."""
    seen = {name: [value for value in only.get(name, values) if value in values] for name, values in own.items()}
    return {**only, **seen}


async def visible(
    database: Database, principal: Principal, account: str | None
) -> tuple[Sequence[str] | None, dict[str, list[str]]]:
    """Return the ids of the accounts whose usage a key may see, None for all, and the filter to its own usage.

    A key sees its own usage. A key with `usage:read` sees its account's. An administrator sees that of all accounts, or
    of the account that it names, by `account` or in the header `Headrace-Account`.

    Raises:
        PermissionDeniedError: The key names an account and is not an administrator's.
        NotFoundError: No account has this name.
    """
    if not principal.is_admin:
        if account is not None:
            raise PermissionDeniedError(
                "Only an administrator's key may ask for an account's usage by its name.", param="account"
            )
        return [principal.account_id], {} if principal.may("usage:read") else {"key": [principal.key_id]}
    if principal.names_account:
        return [principal.account_id], {}
    if account is None or account == _ALL_ACCOUNTS:
        return None, {}
    found = None if "\0" in account else await find_account(database, name=account)
    if found is None:
        raise NotFoundError(f"There is no account '{shorten(account)}'.", param="account")
    return [found.id], {}


def render_csv(data: Sequence[Mapping[str, Any]], names: Sequence[str], next_page: str | None = None) -> Response:
    """Return rows as CSV with a line of `names`. The next page's token is in the header `x-headrace-next-page`."""
    headers = {"x-headrace-next-page": next_page} if next_page is not None else {}
    return Response(render_rows(data, names=names), headers=headers, media_type="text/csv; charset=utf-8")


@router.get("/statement", summary="Get a month's statement", responses={200: {"content": {"text/csv": {}}}})
async def get_statement(
    request: ApiRequest,
    principal: UsageReader,
    month: Annotated[str, Query(pattern=r"^[12]\d{3}-(0[1-9]|1[0-2])$", description="As in `2026-11`; in UTC")],
    account: Annotated[str | None, Query(description=_OF_ADMINISTRATORS)] = None,
) -> Response:
    """Return a month's usage by model, key and price, as CSV. Its sum equals the ledger's to the last digit.

    A key with the scope `usage:read` gets its account's statement, and an administrator that of all accounts.
    """
    whose, _ = await visible(request.state["database"], principal, account)
    return render_csv(await statement_of_month(request.state["database"], month, whose), STATEMENT_COLUMNS)
