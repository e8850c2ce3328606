"""Query parameters: an endpoint accepts only those it knows, and lists in each form that clients write."""

from __future__ import annotations

from typing import Annotated, Any

import httpx
import pytest
from fastapi import Depends, FastAPI, Query

from api.http.errors import handle_errors
from api.http.query import MetadataFilter, check_query, list_of
from api.http.request import ApiRequest

APP = FastAPI()
handle_errors(APP)


def checked(request: ApiRequest) -> None:
    check_query(request)


@APP.get("/list")
async def read_list(
    _: Annotated[None, Depends(checked)],
    metadata: MetadataFilter,
    divided: Annotated[list[str], list_of("divided", "With commas", commas=True)],
    whole: Annotated[list[str], list_of("whole", "Without")],
    limit: Annotated[int, Query(ge=1)] = 20,
) -> dict[str, Any]:
    return {"metadata": metadata, "divided": divided, "whole": whole, "limit": limit}


@APP.get("/plain")
async def read_plain(_: Annotated[None, Depends(checked)]) -> dict[str, Any]:
    return {}


async def get(path: str) -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(APP), base_url="http://headrace.invalid") as client:
        return await client.get(path, headers={"accept": "application/json"})


@pytest.mark.parametrize(
    ("query", "heard"),
    [
        ("", {}),
        ("divided=a,b&divided=c", {"divided": ["a", "b", "c"]}),
        ("divided[]=a,b&divided[]=c", {"divided": ["a,b", "c"]}),
        ("divided[]=a&divided=b,a", {"divided": ["a", "b"]}),
        ("whole=a,b&whole[]=c", {"whole": ["c", "a,b"]}),
        ("metadata[a]=1&metadata[b%5D]=2&limit=3", {"metadata": {"a": "1", "b]": "2"}, "limit": 3}),
    ],
)
async def test_a_list_is_heard_in_each_of_its_forms(query: str, heard: dict[str, Any]) -> None:
    answer = await get(f"/list?{query}")
    assert answer.json() == {"metadata": {}, "divided": [], "whole": [], "limit": 20} | heard


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limits=3", "limits"),
        ("limit[]=3", "limit[]"),
        ("group_by[]=model", "group_by[]"),
        ("limit=3&limit=4", "limit"),
        ("metadata[a]=1&metadata[a]=2", "metadata[a]"),
        ("metadata=1", "metadata"),
        ("whole=a&Whole=b", "Whole"),
        ("=", ""),
    ],
)
async def test_what_an_endpoint_does_not_heed_is_refused(query: str, param: str) -> None:
    answer = await get(f"/list?{query}")
    assert answer.json()["error"]["param"] == param
    assert answer.status_code == 400


async def test_an_endpoint_without_parameters_takes_any() -> None:
    assert (await get("/plain?client_version=1")).status_code == 200
