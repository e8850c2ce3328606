"""Usage and costs in the shape of OpenAI's administration API. Its projects are Headrace's accounts."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, Literal, NamedTuple

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict
from starlette.responses import Response

from api.http.authentication import Authenticated
from api.http.errors import render_json
from api.http.pages import PageToken, read_page_token, render_page_token
from api.http.query import list_of
from api.http.request import ApiRequest
from api.resources.usage import narrow, visible
from headrace.errors import PermissionDeniedError, invalid_parameter, shorten
from headrace.keys.principal import Principal
from headrace.stores.database import Database
from headrace.usage.queries import ask
from headrace.usage.question import Bucket, Question

router = APIRouter(prefix="/organization", tags=["Usage"])

# By width: the bucket, its seconds, and the buckets of a page by default and at most.
_WIDTHS = {"1m": (Bucket.MINUTE, 60, 60, 1440), "1h": (Bucket.HOUR, 3600, 24, 168), "1d": (Bucket.DAY, 86_400, 7, 31)}
# Days of a page of costs by default and at most.
_DEFAULT_COST_BUCKETS = 7
_MOST_COST_BUCKETS = 180
# Results of a page: 10,000 take the event loop about 0.1 s.
_MOST_ROWS = 10_000
_LIVE_TIERS = ("default", "priority", "flex")
_COMPLETION_GROUPS = {
    "project_id": "account",
    "user_id": "user",
    "api_key_id": "key",
    "model": "model",
    "batch": "tier",
    "service_tier": "tier",
}
_COST_GROUPS = {"project_id": "account", "api_key_id": "key", "line_item": "model"}


class UsagePage(BaseModel):
    """Buckets in order of time, with empty ones."""

    model_config = ConfigDict(extra="allow")

    object: Literal["page"]
    data: list[dict[str, Any]]
    has_more: bool
    next_page: str | None


@dataclass(frozen=True, slots=True)
class _Parameters:
    """The parameters that both questions share. `page` is a page's token."""

    start_time: int
    end_time: int | None
    width: str
    limit: int
    page: str | None
    groups: Sequence[str]
    only: Mapping[str, Sequence[str]]
    projects: Sequence[str]


class _Bucket(NamedTuple):
    """The rows of the time from `start` to just before `end`, in Unix seconds."""

    start: int
    end: int
    rows: list[dict[str, Any]]


_Start = Annotated[int, Query(ge=0, le=2**33, description="Unix seconds")]
_End = Annotated[int | None, Query(ge=0, le=2**33, description="Unix seconds, exclusive; now by default")]

_Projects = Annotated[list[str], list_of("project_ids", "Only of these accounts", commas=True)]
_Keys = Annotated[list[str], list_of("api_key_ids", "Only of these keys", commas=True)]
_Models = Annotated[list[str], list_of("models", "Only of these models", commas=True)]
_Users = Annotated[list[str], list_of("user_ids", "Only of these users", commas=True)]


def _given(name: str, values: Sequence[str], allowed: Mapping[str, str] | None = None) -> list[str]:
    """Return the values of a list without empty ones.

    Raises:
        InvalidRequestError: A value is not allowed.
    """
    found = [value for value in values if value]
    for value in found:
        if "\0" in value or (allowed is not None and value not in allowed):
            supported = f". Supported values are: {', '.join(allowed)}" if allowed is not None else ""
            raise invalid_parameter(name, f"'{shorten(value)}'{supported}")
    return found


def _limit(given: int | None, default: int, most: int) -> int:
    if given is not None and not 1 <= given <= most:
        raise invalid_parameter("limit", f"expected 1 to {most}")
    return given or default


async def _buckets(request: ApiRequest, principal: Principal, asked: _Parameters) -> tuple[list[_Bucket], str | None]:
    """Return the buckets of a page, and the token of the next page."""
    bucket, seconds, *_ = _WIDTHS[asked.width]
    shape = [asked.width, asked.groups, asked.only, asked.projects]
    query = repr([asked.start_time, asked.end_time, *shape, principal.view])
    start, until = asked.start_time, asked.end_time
    if asked.page is not None:
        start, until = read_page_token(asked.page, query)
    until = int(time.time()) + 1 if until is None else until
    if start >= until:
        raise invalid_parameter("end_time", "it is not after the start")
    first = start - start % seconds
    last = min(first + asked.limit * seconds, until)
    database = request.state["database"]
    whose, own = await visible(database, principal, None)
    question = Question(
        account_ids=_narrow_projects(asked.projects, whose),
        start=start,
        end=last,
        bucket=bucket,
        groups=asked.groups,
        only=narrow(asked.only, own),
    )
    rows, last = await _rows(database, question, seconds)
    found: dict[int, list[dict[str, Any]]] = {at: [] for at in range(first, last, seconds)}
    for row in rows:
        found[row["start_time"] - row["start_time"] % seconds].append(row)
    page = [_Bucket(max(at, start), min(at + seconds, until), rows) for at, rows in found.items()]
    return page, render_page_token(query, last, until) if last < until else None


def _narrow_projects(asked: Sequence[str], allowed: Sequence[str] | None) -> Sequence[str] | None:
    """Return the projects to read: those asked for, or else all that the key may see. None stands for all accounts.

    Raises:
        PermissionDeniedError: The key may not see a project, or it does not exist: the error does not say which.
    """
    if allowed is not None and not set(asked) <= set(allowed):
        raise PermissionDeniedError(
            "Only an administrator's key may ask for another project's usage.", param="project_ids"
        )
    return asked or allowed


async def _rows(database: Database, question: Question, seconds: int) -> tuple[list[dict[str, Any]], int]:
    """Return the rows of the answer to a question with buckets of `seconds`, and the time up to which they go.

    Of more rows than a page may have, the page has those of the first whole buckets.

    Raises:
        InvalidRequestError: The first bucket alone has too many rows, or the answer would take too long.
    """
    question.check()
    rows = await ask(database, question, limit=_MOST_ROWS + 1, names=False)
    if len(rows) <= _MOST_ROWS:
        return rows, question.end
    end = rows[-1]["start_time"] // seconds * seconds
    rows = [row for row in rows if row["start_time"] < end]
    if not rows:
        raise invalid_parameter(
            "group_by",
            f"a bucket has more than {_MOST_ROWS} results. Group by less, ask for shorter buckets, or use GET /usage",
        )
    return rows, end


def _render(
    buckets: Sequence[_Bucket], next_page: str | None, result: Callable[[Mapping[str, Any]], dict[str, Any]]
) -> Response:
    data = [
        {"object": "bucket", "start_time": start, "end_time": end, "results": [result(row) for row in rows]}
        for start, end, rows in buckets
    ]
    document = {"object": "page", "data": data, "has_more": next_page is not None, "next_page": next_page}
    return render_json(document)


@router.get("/usage/completions", summary="Get completions usage", responses={200: {"model": UsagePage}})
async def get_completions_usage(
    request: ApiRequest,
    principal: Authenticated,
    start_time: _Start,
    group_by: Annotated[
        list[str], list_of("group_by", f"The fields to group by: {', '.join(_COMPLETION_GROUPS)}", commas=True)
    ],
    project_ids: _Projects,
    user_ids: _Users,
    api_key_ids: _Keys,
    models: _Models,
    end_time: _End = None,
    bucket_width: Annotated[Literal["1m", "1h", "1d"], Query()] = "1d",
    batch: Annotated[bool | None, Query(description="`true`: only batches; `false`: only other requests")] = None,
    limit: Annotated[
        int | None, Query(ge=1, le=1440, description="Buckets: at most 1,440 minutes, 168 hours or 31 days")
    ] = None,
    page: PageToken = None,
) -> Response:
    """Add usage up as OpenAI does; `group_by`, `project_ids`, `user_ids`, `api_key_ids` and `models` narrow it."""
    groups = _given("group_by", group_by, _COMPLETION_GROUPS)
    only = {
        "key": _given("api_key_ids", api_key_ids),
        "model": _given("models", models),
        "user": _given("user_ids", user_ids),
        "tier": [] if batch is None else ["batch"] if batch else [*_LIVE_TIERS],
    }
    asked = _Parameters(
        start_time=start_time,
        end_time=end_time,
        width=bucket_width,
        limit=_limit(limit, *_WIDTHS[bucket_width][2:]),
        page=page,
        groups=list(dict.fromkeys(_COMPLETION_GROUPS[name] for name in groups)),
        only={name: values for name, values in only.items() if values},
        projects=_given("project_ids", project_ids),
    )
    buckets, next_page = await _buckets(request, principal, asked)
    merged = [bucket._replace(rows=_merged(bucket.rows, groups)) for bucket in buckets]
    return _render(merged, next_page, lambda row: _completions_result(row, groups))


def _merged(rows: list[dict[str, Any]], groups: Sequence[str]) -> list[dict[str, Any]]:
    """Return rows with the live tiers merged into one, if they are grouped by `batch` and not by tier."""
    if "batch" not in groups or "service_tier" in groups:
        return rows
    merged: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        row["tier"] = "batch" if row["tier"] == "batch" else "default"
        key = tuple(row[_COMPLETION_GROUPS[name]] for name in groups)
        if key not in merged:
            merged[key] = row
        else:
            merged[key] = {
                name: merged[key][name] + value
                if isinstance(value, int | Decimal) and not name.endswith("_time")
                else value
                for name, value in row.items()
            }
    return list(merged.values())


def _group(row: Mapping[str, Any], groups: Sequence[str], name: str) -> Any:
    if name not in groups:
        return None
    value = row[_COMPLETION_GROUPS[name]]
    return value == "batch" if name == "batch" else value


def _completions_result(row: Mapping[str, Any], groups: Sequence[str]) -> dict[str, Any]:
    # OpenAI counts cached and uncached tokens of text and of audio. No provider reports which of the two was cached, so
    # text counts as cached first. Uncached tokens neither came from a cache nor went into one.
    cached, audio = row["cached_tokens"], row["prompt_audio_tokens"]
    uncached = row["prompt_tokens"] - cached - row["cache_write_tokens"]
    uncached_audio = max(0, min(audio, uncached))
    cached_audio = max(0, cached - (row["prompt_tokens"] - audio))
    return {
        "object": "organization.usage.completions.result",
        "input_tokens": row["prompt_tokens"],
        "input_cached_tokens": cached,
        "input_cache_write_tokens": row["cache_write_tokens"],
        "input_uncached_tokens": uncached,
        "output_tokens": row["completion_tokens"],
        "input_text_tokens": uncached - uncached_audio,
        "output_text_tokens": row["completion_tokens"] - row["completion_audio_tokens"],
        "input_cached_text_tokens": cached - cached_audio,
        "input_audio_tokens": uncached_audio,
        "input_cached_audio_tokens": cached_audio,
        "output_audio_tokens": row["completion_audio_tokens"],
        "input_image_tokens": 0,
        "input_cached_image_tokens": 0,
        "output_image_tokens": 0,
        "num_model_requests": row["requests"],
        **{name: _group(row, groups, name) for name in _COMPLETION_GROUPS},
    }


@router.get("/costs", summary="Get costs", responses={200: {"model": UsagePage}})
async def get_costs(
    request: ApiRequest,
    principal: Authenticated,
    start_time: _Start,
    group_by: Annotated[
        list[str], list_of("group_by", f"The fields to group by: {', '.join(_COST_GROUPS)}", commas=True)
    ],
    project_ids: _Projects,
    api_key_ids: _Keys,
    end_time: _End = None,
    bucket_width: Annotated[Literal["1d"], Query()] = "1d",
    limit: Annotated[int | None, Query(ge=1, le=_MOST_COST_BUCKETS, description="Buckets")] = None,
    page: PageToken = None,
) -> Response:
    """Add costs up as OpenAI does; a line item is a model. `group_by`, `project_ids` and `api_key_ids` narrow it."""
    groups = _given("group_by", group_by, _COST_GROUPS)
    keys = _given("api_key_ids", api_key_ids)
    asked = _Parameters(
        start_time=start_time,
        end_time=end_time,
        width=bucket_width,
        limit=_limit(limit, _DEFAULT_COST_BUCKETS, _MOST_COST_BUCKETS),
        page=page,
        groups=[_COST_GROUPS[name] for name in groups],
        only={"key": keys} if keys else {},
        projects=_given("project_ids", project_ids),
    )
    buckets, next_page = await _buckets(request, principal, asked)
    return _render(buckets, next_page, lambda row: _costs_result(row, groups))


def _costs_result(row: Mapping[str, Any], groups: Sequence[str]) -> dict[str, Any]:
    by_item = "line_item" in groups
    return {
        "object": "organization.costs.result",
        "amount": {"value": float(row["cost"]), "currency": "usd"},
        **{name: row[group] if name in groups else None for name, group in _COST_GROUPS.items()},
        "quantity": row["prompt_tokens"] + row["completion_tokens"] if by_item else None,
        "quantity_unit": "tokens" if by_item else None,
    }
