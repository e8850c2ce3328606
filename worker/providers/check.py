"""Calls every provider once, to tell which of them work."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from headrace.catalogue import Catalogue, Route
from headrace.chat.usage import parse_usage
from headrace.errors import HeadraceError, UpstreamError
from worker.demo import DemoUpstream
from worker.providers.client import ProviderClient, without_secret
from worker.providers.formats import FORMATS

# Enough for a model that thinks before it says a word; some providers refuse less than 16.
_MOST_TOKENS = 512


@dataclass(frozen=True, slots=True)
class Check:
    """What came of one call. `problem` is None if the provider answered."""

    provider: str
    kind: str
    model: str | None
    seconds: float | None
    tokens: int | None
    problem: str | None


async def check_providers(catalogue: Catalogue, names: Sequence[str], *, patience: float) -> list[Check]:
    """Ask each of these providers, or all without names, for one short completion within `patience` seconds."""
    demo, client = DemoUpstream(), ProviderClient(connections=max(1, len(catalogue.providers)))
    try:
        placed = await demo.place(catalogue)
        wanted = [name for name in placed.providers if not names or name in names]
        return await asyncio.gather(*(_check(client, placed, name, patience) for name in wanted))
    finally:
        await client.close()
        await demo.close()


async def _check(client: ProviderClient, catalogue: Catalogue, name: str, patience: float) -> Check:
    kind = catalogue.providers[name].kind
    route = _first_route(catalogue, name)
    if route is None:
        return Check(name, kind, None, None, None, "no model with a name of its own is routed to it")
    began = time.monotonic()
    try:
        async with asyncio.timeout(patience):
            tokens = await _ask(client, route)
    except TimeoutError:
        problem = f"No answer within {patience:g} s."
    except HeadraceError as error:
        # An operator may know more than a client: why there is no connection, in the library's words.
        because = f" {error.__cause__}" if error.__cause__ is not None else ""
        problem = without_secret(UpstreamError(error.message + because), route.provider.secret()).message
    else:
        return Check(name, kind, route.model, time.monotonic() - began, tokens, None)
    return Check(name, kind, route.model, None, None, problem)


async def _ask(client: ProviderClient, route: Route) -> int | None:
    form = FORMATS[route.provider.kind]
    request = {
        "messages": [{"role": "user", "content": "Answer with the word: yes"}],
        "max_completion_tokens": _MOST_TOKENS,
    }
    async with client.call(
        route.provider,
        url=form.render_url(route.provider.base_url, model=route.model, stream=False),
        headers=form.render_headers(route.provider.secret()),
        body=form.render_request(request, model=route.model, stream=False, output_limit=route.output_limit),
    ) as answer:
        usage = parse_usage(form.parse_completion(await answer.read()).get("usage"))
    return None if usage is None else usage.total_tokens


def _first_route(catalogue: Catalogue, provider: str) -> Route | None:
    for name in catalogue.names():
        for route in catalogue.routes(name):
            if route.provider_name == provider:
                return route
    return None
