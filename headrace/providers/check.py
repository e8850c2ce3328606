"""One short call to every provider, to find which of them work."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from headrace.catalogue.models import Catalogue, Model, Route
from headrace.errors import HeadraceError, UpstreamError
from headrace.formats.chat.usage import parse_usage
from headrace.formats.registry import FORMATS
from headrace.providers.client import ProviderClient, without_secret
from headrace.providers.demo.server import DemoUpstream

# Enough for a model that thinks before it says a word; some providers refuse less than 16.
_MOST_TOKENS = 512


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one call: answered, failed with a `problem`, or `unchecked` for the reason that it names."""

    provider: str
    kind: str
    model: str | None
    seconds: float | None
    tokens: int | None
    problem: str | None = None
    unchecked: str | None = None


async def check_providers(catalogue: Catalogue, names: Sequence[str], *, patience: float) -> list[Check]:
    """Ask each of these providers, or all without names, for one short completion within `patience` seconds.

    A name is a provider's, or `provider/model` to ask for that model.
    """
    demo, client = DemoUpstream(), ProviderClient(connections=max(1, len(catalogue.providers)))
    try:
        placed = await demo.place(catalogue)
        wanted = [name.partition("/") for name in names or placed.providers]
        return await asyncio.gather(*(_check(client, placed, name, model, patience) for name, _, model in wanted))
    finally:
        await client.close()
        await demo.close()


async def _check(client: ProviderClient, catalogue: Catalogue, name: str, model: str, patience: float) -> Check:
    provider = catalogue.providers[name]
    kind, routes = provider.kind, _routes(catalogue, name)
    if model:
        form = next((route.chosen_format for route in routes if fnmatchcase(model, route.model)), None)
        routes = [Route(name, provider, model, Model(routes=[f"{name}/{model}"]), chosen_format=form)]
    if not routes:
        return Check(name, kind, None, None, None, "no model is routed to it")
    route = next((route for route in routes if "*" not in route.model), None)
    if route is None:
        told = f"only globs are routed to it: name a model, as in {name}/MODEL"
        return Check(name, kind, None, None, None, unchecked=told)
    began = time.monotonic()
    try:
        async with asyncio.timeout(patience):
            tokens = await _ask(client, route)
    except TimeoutError:
        problem = f"No answer within {patience:g} s."
    except HeadraceError as error:
        # An operator may know more than a client: where there is no connection, and why.
        reason = error.__cause__ if error.detail is None else error.detail
        because = "" if reason is None else f" {reason}"
        problem = without_secret(UpstreamError(error.message + because), route.provider.secret()).message
    else:
        return Check(name, kind, route.model, time.monotonic() - began, tokens)
    return Check(name, kind, route.model, None, None, problem)


async def _ask(client: ProviderClient, route: Route) -> int | None:
    form = FORMATS[route.format]
    request = {
        "messages": [{"role": "user", "content": "Answer with the word: yes"}],
        "max_completion_tokens": _MOST_TOKENS,
    }
    async with client.call(
        route.provider,
        url=form.render_url(route.provider.base_url, model=route.model, stream=False),
        headers=form.render_headers(route.provider.secret()),
        body=form.render_request(
            request,
            model=route.model,
            stream=False,
            output_limit=route.output_limit,
            limit_parameter=route.provider.limit_parameter,
        ),
    ) as answer:
        usage = parse_usage(form.parse_completion(await answer.read()).get("usage"))
    return None if usage is None else usage.total_tokens


def _routes(catalogue: Catalogue, provider: str) -> list[Route]:
    """Return the ways to a provider, of models with a name of their own first; one of a glob may end with a `*`."""
    return [
        Route(
            provider,
            catalogue.providers[provider],
            options.route.partition("/")[2],
            entry,
            chosen_format=options.format,
        )
        for _, entry in sorted(catalogue.models.items(), key=lambda item: ("*" in item[0], item[0]))
        for options in entry.ordered_routes()
        if options.route.partition("/")[0] == provider
    ]
