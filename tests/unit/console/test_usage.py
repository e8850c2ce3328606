"""The page of usage: what a choice asks of the API, what the plot has, and the CSV."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from console.pages.usage import Choice, months
from console.sessions import Session
from tests.unit.console.fake_api import ACCOUNT, answers, browser, console, sign_in

NOW = datetime(2026, 3, 2, 10, 30, tzinfo=UTC)
TIMES = {"p50": 0.8, "p90": 1.0, "p95": 4.2, "p99": 9.0}


def choice(**query: str) -> Choice:
    return Choice.of(query, Session("key", ACCOUNT), NOW)


def amounts(cost: float, requests: int = 1) -> dict[str, Any]:
    tokens = dict.fromkeys(
        ("prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens", "total_tokens"), 1000
    )
    counts = dict.fromkeys(("unpriced_requests", "estimated_requests", "streamed_requests", "discarded_attempts"), 0)
    return {
        **tokens,
        **counts,
        "requests": requests,
        "cost": str(cost),
        "discarded_cost": "0",
        "first_token_seconds": TIMES,
        "duration_seconds": TIMES,
    }


class Api:
    """Answers as an API whose usage today is that of these groups, each with its cost."""

    def __init__(self, groups: Mapping[str | None, float], scopes: list[str] | None = None) -> None:
        self.groups = groups
        self.account = ACCOUNT | {"key": {**ACCOUNT["key"], "scopes": scopes or []}}  # type: ignore[dict-item]
        self.asked: list[httpx.QueryParams] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        query = request.url.params
        match request.url.path.removeprefix("/api/v1"):
            case "/account":
                return httpx.Response(200, json=self.account)
            case "/usage":
                self.asked.append(query)
                return self._usage(query)
            case "/usage/statement":
                return httpx.Response(200, text=f"month\n{query['month']}\n")
            case "/api-keys":
                key = {"id": "key_0123456789", "name": "batch <jobs>"}
                return httpx.Response(200, json={"data": [key], "has_more": False})
        return answers(request)

    def _usage(self, query: httpx.QueryParams) -> httpx.Response:
        by = query.get("group_by")
        midnight = int(datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0).timestamp())
        if query.get("format") == "csv":
            following = {"x-headrace-next-page": "2"} if "page" not in query else {}
            return httpx.Response(200, text=f"model,cost\r\n{query.get('page', '1')},0\r\n", headers=following)
        if by is None:
            rows = [amounts(sum(self.groups.values()), len(self.groups))]
        else:
            only = query.get_list(by)
            rows = [amounts(cost) | {by: name} for name, cost in self.groups.items() if not only or name in only]
        data = [{"start_time": midnight, "end_time": midnight + 86_400, **row} for row in rows]
        return httpx.Response(200, json={"data": data, "has_more": False, "next_page": None})


@pytest.mark.parametrize(
    ("range_", "start", "columns", "bucket"),
    [
        ("24h", datetime(2026, 3, 1, 11, tzinfo=UTC), 24, "hour"),
        ("7d", datetime(2026, 2, 24, tzinfo=UTC), 7, "day"),
        ("90d", datetime(2025, 12, 3, tzinfo=UTC), 90, "day"),
        ("2026-03", datetime(2026, 3, 1, tzinfo=UTC), 2, "day"),
        ("2026-02", datetime(2026, 2, 1, tzinfo=UTC), 28, "day"),
        ("2025-12", datetime(2025, 12, 1, tzinfo=UTC), 31, "day"),
        ("2031-01", datetime(2026, 2, 1, tzinfo=UTC), 30, "day"),  # not offered: the default
    ],
)
def test_a_range_has_a_column_for_each_bucket(range_: str, start: datetime, columns: int, bucket: str) -> None:
    chosen = choice(range=range_)
    assert (chosen.start, len(chosen.columns), chosen.bucket) == (start.timestamp(), columns, bucket)


def test_what_a_query_says_wrongly_is_the_default() -> None:
    wrong = choice(range="x", by="account", show="x", account="other")
    assert (wrong.range, wrong.by, wrong.show, wrong.account) == ("30d", "model", "cost", "")
    assert choice(range="2026-02").end == datetime(2026, 3, 1, tzinfo=UTC).timestamp()
    assert choice(range="2026-03").end is None
    assert (months(NOW)[0], months(NOW)[-1]) == ("2026-03", "2025-03")


async def test_the_largest_groups_have_a_series_and_the_others_share_one() -> None:
    api = Api({f"model {number}": float(number) for number in range(1, 13)}, ["usage:read"])
    async with browser(console(api)) as client:
        await sign_in(client, next="/usage")
        shown = (await client.get("/usage")).text
        assert [query.get_list("model") for query in api.asked if "model" in query][-1] == [
            f"model {number}" for number in range(12, 5, -1)
        ]
        assert "</svg>other</li>" in shown
        assert "other: $15" in shown
        assert "$78.00" in shown
        assert "sees its own usage" not in shown
        assert 'href="/usage.csv?range=30d"' in shown


async def test_the_usage_of_no_user_is_told_from_other_users() -> None:
    async with browser(console(Api({None: 2.0, "ada": 1.0, "no user": 1.0}))) as client:
        await sign_in(client, next="/usage")
        shown = (await client.get("/usage?by=user&range=7d")).text
        assert "no user (several): $2" in shown
        assert "ada: $1" in shown
        assert "sees its own usage" in shown


async def test_keys_have_their_names_where_the_key_may_list_them() -> None:
    for scopes, name in (([], "key_0123456789"), (["keys:write"], "batch &lt;jobs&gt; (…456789)")):
        async with browser(console(Api({"key_0123456789": 1.0, "key_9": 1.0}, scopes))) as client:
            await sign_in(client, next="/usage")
            shown = (await client.get("/usage?by=key")).text
            assert f'<th scope="row">{name}</th>' in shown
            assert '<th scope="row">key_9</th>' in shown


async def test_an_administrator_chooses_an_account() -> None:
    api = Api({"own": 1.0}, ["admin"])
    async with browser(console(api)) as client:
        await sign_in(client, next="/usage")
        assert "Usage of all accounts" in (await client.get("/usage?by=account")).text
        assert "Usage of the account own" in (await client.get("/usage?account=own")).text
        assert api.asked[-1]["account"] == "own"


async def test_no_usage_is_said() -> None:
    async with browser(console(Api({}))) as client:
        await sign_in(client, next="/usage")
        assert "No usage in this time" in (await client.get("/usage?range=24h")).text


async def test_models_without_a_price_have_no_plot_of_their_cost() -> None:
    async with browser(console(Api({"demo": 0.0}))) as client:
        await sign_in(client, next="/usage")
        shown = (await client.get("/usage?show=cost")).text
        assert "Nothing to plot" in shown
        assert '<th scope="row">demo</th>' in shown
        assert "demo: 1" in (await client.get("/usage?show=requests")).text


async def test_a_refused_question_keeps_the_choices() -> None:
    def api(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/usage") and request.url.params.get("group_by") == "user":
            return httpx.Response(400, json={"error": {"message": "Too long.", "code": None, "param": "start"}})
        return Api({"demo": 1.0})(request)

    async with browser(console(api)) as client:
        await sign_in(client, next="/usage")
        page = await client.get("/usage?by=user&range=90d")
        assert page.status_code == 200
        assert "for 31 days at most" in page.text
        assert "/usage?by=model&amp;range=90d" in page.text


async def test_the_csv_has_all_pages_below_one_line_of_names() -> None:
    api = Api({"demo": 1.0})
    async with browser(console(api)) as client:
        await sign_in(client, next="/usage")
        answer = await client.get("/usage.csv?range=24h&by=key")
        assert answer.text == "model,cost\r\n1,0\r\n2,0\r\n"
        assert 'filename="usage-24h-by-key.csv"' in answer.headers["content-disposition"]
        assert (api.asked[-1]["bucket"], api.asked[-1]["group_by"]) == ("hour", "key")
        month = months(datetime.now(UTC))[1]
        statement = await client.get(f"/usage/statement.csv?range={month}")
        assert statement.text == f"month\n{month}\n"
        assert statement.headers["content-type"].startswith("text/csv")
