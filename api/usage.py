"""The account's usage, added up as asked."""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from api.authentication import Authenticated
from headrace.database import Row
from headrace.errors import InvalidRequestError
from headrace.usage.queries import Bucket, Group, account_usage, render_cost

router = APIRouter(prefix="/usage", tags=["Usage"])

_DEFAULT_SECONDS = 30 * 86_400
_MOST_BUCKETS = 10_000
_MOST_ROWS = 10_000
_GROUPS = {group.value: group for group in (Group.MODEL, Group.PROVIDER, Group.KEY, Group.AGENT)}
_GROUPED = "There only when asked for by `group_by`"


class UsageBucket(BaseModel):
    """What one group used from `start_time` to just before `end_time`, in Unix seconds.

    Requests, their tokens and their cost are those of jobs that have ended. Attempts that were thrown away, as when a
    provider broke off and was asked again, are in `discarded_tokens` and in nothing else.
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
                "reasoning_tokens": 0,
                "total_tokens": 340,
                "estimated_requests": 0,
                "unpriced_requests": 0,
                "discarded_tokens": 0,
                "cost": "0.00115",
            }
        }
    )

    start_time: int
    end_time: int
    model: str | None = Field(default=None, description=f"As it was asked for. {_GROUPED}")
    provider: str | None = Field(default=None, description=f"Who answered. {_GROUPED}")
    key: str | None = Field(default=None, description=f"The API key's id. {_GROUPED}")
    agent: str | None = Field(default=None, description=f"The agent's id. {_GROUPED}")
    requests: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = Field(description="Part of `prompt_tokens`")
    reasoning_tokens: int = Field(description="Part of `completion_tokens`")
    total_tokens: int
    estimated_requests: int = Field(
        description="Requests whose tokens the provider did not report: we counted, roughly"
    )
    unpriced_requests: int = Field(description="Requests to models without a price, which `cost` leaves out")
    discarded_tokens: int = Field(description="Spent by attempts whose answer nobody got")
    cost: str = Field(description="USD, exact")


class UsageList(BaseModel):
    """Usage in order of time, then of the groups; where nothing was used there is no entry."""

    object: Literal["list"]
    data: list[UsageBucket]


_Time = Annotated[int | None, Query(ge=0, le=2**33)]


@router.get("", summary="Get usage", responses={200: {"model": UsageList}})
async def get_usage(
    request: Request,
    principal: Authenticated,
    start: Annotated[_Time, Query(description="Unix seconds; 30 days before the end by default")] = None,
    end: Annotated[_Time, Query(description="Unix seconds, itself left out; now by default")] = None,
    bucket: Annotated[Bucket | None, Query(description="In UTC; without it the whole time is one")] = None,
    group_by: Annotated[
        str | None,
        Query(description="What to tell apart: `model`, `provider`, `key`, `agent`, or several, as in `model,key`"),
    ] = None,
) -> Response:
    """Add up what the account's jobs used, by the time at which they ended."""
    # What is used in this very second counts too.
    until = int(time.time()) + 1 if end is None else end
    since = max(0, until - _DEFAULT_SECONDS) if start is None else start
    if since >= until:
        param = "start" if end is None else "end"
        raise InvalidRequestError(
            f"Invalid '{param}': the end is not after the start.", param=param, code="invalid_value"
        )
    if bucket is not None and bucket.spans(since, until) > _MOST_BUCKETS:
        raise InvalidRequestError(
            f"Invalid 'bucket': from start to end there are more than {_MOST_BUCKETS} of a {bucket}.",
            param="bucket",
            code="invalid_value",
        )
    groups = _parse_groups(group_by)
    rows = await account_usage(
        request.state.database,
        principal.account_id,
        start=since,
        end=until,
        bucket=bucket,
        group_by=groups,
        limit=_MOST_ROWS + 1,
    )
    if len(rows) > _MOST_ROWS:
        raise InvalidRequestError(
            f"Invalid 'group_by': the answer has more than {_MOST_ROWS} entries. Ask for less time, a wider bucket or "
            "fewer groups.",
            param="group_by",
            code="invalid_value",
        )
    document = {"object": "list", "data": [_render(row) for row in rows]}
    return Response(orjson.dumps(document), media_type="application/json")


def _parse_groups(group_by: str | None) -> list[Group]:
    names = [] if group_by is None else [name.strip() for name in group_by.split(",")]
    for name in names:
        if name not in _GROUPS:
            raise InvalidRequestError(
                f"Invalid 'group_by': '{name[:100]}'. Supported values are: {', '.join(_GROUPS)}.",
                param="group_by",
                code="invalid_value",
            )
    return [_GROUPS[name] for name in dict.fromkeys(names)]


def _render(row: Row) -> dict[str, Any]:
    return {**row._asdict(), "cost": render_cost(row.cost)}
