"""Routes that cost less than FastAPI's own, for the endpoints that most requests go to."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from api.http.authentication import authenticate
from api.http.request import ApiRequest


class DirectRoute(APIRoute):
    """A route whose endpoint is called directly, if it takes no more than the request and its principal."""

    @property
    def is_direct(self) -> bool:
        """Whether nothing of a request has to be parsed for the endpoint: no part of its path, query or body."""
        takes = self.dependant
        dependencies = [(dependency.name, dependency.call) for dependency in takes.dependencies]
        if (takes.request_param_name, dependencies) != ("request", [("principal", authenticate)]):
            return False
        others = (takes.path_params, takes.query_params, takes.header_params, takes.cookie_params, takes.body_params)
        return not any(others)


Routes = Mapping[tuple[str, str], DirectRoute]
"""Direct routes by their method and their whole path."""


def direct_routes(router: APIRouter, prefix: str) -> Routes:
    """Return the direct routes of a router that is included under `prefix`."""
    direct = [route for route in router.routes if isinstance(route, DirectRoute) and route.is_direct]
    return {(method, prefix + route.path): route for route in direct for method in route.methods or ()}


class DirectRoutes:
    """Answers the requests to direct routes, and leaves others to `app`, which is FastAPI's router.

    FastAPI tries one route after the other, all under `/api/v1` before those under `/v1`, and looks for parameters and
    dependencies at each request.
    """

    def __init__(self, app: ASGIApp, routes: Routes) -> None:
        self._app = app
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        route = self._routes.get((scope["method"], scope["path"])) if scope["type"] == "http" else None
        if route is None:
            await self._app(scope, receive, send)
            return
        scope["route"] = route
        request = ApiRequest(scope, receive, send)
        response: Response = await route.endpoint(request=request, principal=await authenticate(request))
        await response(scope, receive, send)
