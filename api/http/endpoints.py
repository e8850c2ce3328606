"""Errors for endpoints and models that do not exist: they name the nearest that do."""

from __future__ import annotations

import difflib
import functools
import heapq
import re
from collections.abc import Sequence

from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from starlette.routing import compile_path

from api.http.request import ApiRequest
from headrace.errors import HeadraceError, InvalidRequestError, ModelNotFoundError, NotFoundError

# Characters of a path that are compared and quoted.
_LONGEST = 100
# Names of models that an error lists.
_MOST_MODELS = 10
# Share of its characters that a path has in common with the endpoint that an error names.
_LIKE = 0.6
# Names that are compared closely, for each that an error lists.
_COMPARED = 2


def unknown_endpoint(request: ApiRequest) -> HeadraceError:
    """Return the error for a path that does not exist, or that does not have the request's method."""
    path = request.url.path
    endpoints = _endpoints(request.app)
    # The middleware turned HEAD into GET, because every path with GET has HEAD too.
    allowed = sorted({method for method, _, pattern in endpoints if pattern.match(path)})
    asked = f"{request.scope['method']} {path[:_LONGEST]}"
    if allowed and request.scope["method"] not in allowed:
        error: HeadraceError = InvalidRequestError(
            f"Method not allowed: {asked}. This path has {', '.join(allowed)}.", status=405, code="method_not_allowed"
        )
        error.headers = {"allow": ", ".join(allowed)}
        return error
    prefix = "/api/v1/" if path.startswith("/api/v1/") else "/v1/"
    known = [f"{method} {form}" for method, form, _ in endpoints if form.startswith(prefix) and method != "HEAD"]
    near = _nearest(asked, known, most=1, cutoff=_LIKE)
    hint = f" The nearest endpoint is {near[0]}." if near else ""
    return NotFoundError(f"Unknown request URL: {asked} does not exist.{hint}", code="unknown_url")


def unknown_model(request: ApiRequest, error: ModelNotFoundError) -> HeadraceError:
    """Return the error for a model that does not exist, with the nearest models that the request's key may use."""
    may_ask = request.state["principal"].may_ask
    served = [name for name in request.state["catalogue"].current.entries() if may_ask(name)]
    near = _nearest(error.asked, served, most=_MOST_MODELS, cutoff=0)
    if not near:
        return error
    more = f" and {len(served) - len(near)} more" if len(served) > len(near) else ""
    return ModelNotFoundError(f"{error.message} There are: {', '.join(near)}{more}.", param=error.param)


def _nearest(asked: str, names: Sequence[str], *, most: int, cutoff: float) -> list[str]:
    """Return up to `most` of the names, the nearest first, whose likeness to what was asked is at least `cutoff`.

    A close comparison takes up to 50 µs, and a request without a key may ask for one. So it compares closely only those
    names that share the most pairs of characters with what was asked.
    """
    pairs = _pairs(asked)

    def likeness(name: str) -> float:
        of_name = _pairs_of_known(name)
        return len(pairs & of_name) / (len(pairs) + len(of_name) + 1)

    return difflib.get_close_matches(asked, heapq.nlargest(_COMPARED * most, names, likeness), most, cutoff)


def _pairs(name: str) -> frozenset[str]:
    return frozenset(map(str.__add__, name, name[1:]))


_pairs_of_known = functools.lru_cache(maxsize=1024)(_pairs)


@functools.lru_cache(maxsize=1)  # a process has one app
def _endpoints(app: FastAPI) -> list[tuple[str, str, re.Pattern[str]]]:
    """Return the method, the path and the path's pattern of every endpoint."""
    endpoints = []
    for route in iter_route_contexts(app.routes):
        assert route.path_format is not None
        pattern = compile_path(route.path_format)[0]
        methods = set(route.methods or ())
        if "GET" in methods:
            methods.add("HEAD")
        endpoints += [(method, route.path_format, pattern) for method in methods]
    return endpoints
