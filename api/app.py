"""The application: every resource under `/api/v1`, as documented, and under `/v1`, as OpenAI's clients assume."""

from __future__ import annotations

from types import MappingProxyType

from fastapi import FastAPI
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.types import ASGIApp

import headrace
from api.http.errors import handle_errors
from api.http.openapi import describe
from api.http.routes import DirectRoutes, Routes, direct_routes
from api.resources import (
    account,
    agents,
    api_keys,
    batches,
    chat,
    conversations,
    files,
    health,
    home,
    jobs,
    metrics,
    models,
    organization,
    reference,
    responses,
    status,
    stored,
    usage,
    webhooks,
)
from api.state import lifespan_of
from headrace.settings import Settings

_PREFIXES = ("/api/v1", "/v1")


class Application(FastAPI):
    """FastAPI's application without its outer layers, which have nothing to do here and would slow every request.

    `RequestScope` answers errors that no handler caught, `read_body` limits bodies, and Headrace has its own spans.
    """

    direct: Routes = MappingProxyType({})
    """The routes that are looked up ahead of FastAPI's router."""

    def build_middleware_stack(self) -> ASGIApp:
        """Return what answers requests, from the outermost layer to the routes."""
        app: ASGIApp = AsyncExitStackMiddleware(self.router)  # FastAPI's handlers of requests expect its stack
        app = DirectRoutes(app, self.direct)
        app = ExceptionMiddleware(app, handlers=self.exception_handlers)
        for layer in reversed(self.user_middleware):
            app = layer.cls(app, *layer.args, **layer.kwargs)
        return app


def create_app(settings: Settings) -> Application:
    """Return the application, to be served within `RequestScope`. Its lifespan connects to the stores."""
    app = Application(
        title="Headrace",
        summary="Completions that do not get lost",
        version=headrace.__version__,
        lifespan=lifespan_of(settings),
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
        # Headrace has its own metrics, logs and spans. FastAPI's would cost each request a look for theirs.
        telemetry={"auto_configure": False, "tracing": False, "metrics": False, "logs": False},
        redirect_slashes=False,  # a redirect would go to the host that the client names in `Host`
    )
    for prefix in _PREFIXES:
        for resource in (  # routes are tried in this order, so those of most requests come first
            chat,
            responses,
            stored,
            jobs,
            files,
            batches,
            agents,
            conversations,
            models,
            usage,
            organization,
            api_keys,
            account,
            webhooks,
            status,
        ):
            app.include_router(resource.router, prefix=prefix, include_in_schema=prefix == _PREFIXES[0])
            app.direct = {**app.direct, **direct_routes(resource.router, prefix)}
    for prefix in ("", *_PREFIXES):
        for resource in (health, metrics):
            app.include_router(resource.router, prefix=prefix, include_in_schema=not prefix)
    app.include_router(home.router)
    if settings.docs:
        app.include_router(reference.router)
    handle_errors(app)
    if settings.cors_origins:
        # Clients send keys in headers, never in cookies, so any header is safe to allow.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["*"],
            allow_headers=["*"],  # OpenAI's clients send many, such as `x-stainless-os`
            expose_headers=["*"],
            max_age=7200,
        )
    describe(app)
    return app
