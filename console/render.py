"""Templates: the environment, its filters, and the answer that a page is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import jinja2
from fastapi import Request
from markupsafe import Markup, escape
from starlette.responses import HTMLResponse, RedirectResponse, Response

import headrace
from console.sessions import Session

_FOLDER = Path(__file__).parent
STATIC = _FOLDER / "static"

# The pages of the navigation: path, name, and the second key of the shortcut that begins with `g`.
PAGES = (
    ("/", "Overview", "o"),
    ("/jobs", "Jobs", "j"),
    ("/batches", "Batches", "b"),
    ("/usage", "Usage", "u"),
    ("/playground", "Playground", "p"),
    ("/models", "Models", "m"),
    ("/agents", "Agents", "a"),
    ("/webhooks", "Webhooks", "w"),
    ("/keys", "Keys", "k"),
)
# The header with which a page that refreshes itself asks for its newest state. No reader sees a message of that answer.
REFRESH_HEADER = "console-refresh"
_THEMES = {"light", "dark"}
# What stands for a value that there is not.
DASH = "\N{EN DASH}"


class Given(dict[str, Any]):
    """What a query or a form has. A template reads a name that it does not have as an empty text."""

    def __missing__(self, name: str) -> str:
        return ""


def page(request: Request, template: str, *, status: int = 200, **context: Any) -> HTMLResponse:
    """Return a page. The template sees the request's session, or None before a sign-in."""
    session: Session | None = getattr(request.state, "session", None)
    theme = request.cookies.get("theme", "")
    text = _ENVIRONMENT.get_template(template).render(
        context,
        session=session,
        messages=session.take_messages() if session and REFRESH_HEADER not in request.headers else [],
        path=request.url.path,
        query=Given(request.query_params),
        theme=theme if theme in _THEMES else "",
    )
    return HTMLResponse(text, status)


def redirect(path: str) -> Response:
    """Return an answer that makes the browser get a path of the console, as after a form."""
    return RedirectResponse(path, 303)


def local_path(path: str, otherwise: str = "/") -> str:
    """Return a path of the console, or another one for anything that could lead to another site."""
    fine = path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable()
    return path if fine else otherwise


def number(value: float | None) -> str:
    """Return 12,345, or a dash for no value."""
    return DASH if value is None else f"{value:,.0f}"


def money(value: float | str | None) -> str:
    """Return US dollars, with as many digits as a small sum needs."""
    if value is None:
        return DASH
    amount = float(value)
    if abs(amount) >= 1:
        return f"${amount:,.2f}"
    rounded = f"{amount:.6f}"
    if amount and not float(rounded):
        return "< $0.000001"
    whole, _, part = rounded.partition(".")
    return f"${whole}.{part.rstrip('0'):0<2}"


def short_number(value: float) -> str:
    """Return a number for a plot's axis: 0.25, 950, 1.2 K, 3 M, 4.5 B."""
    for factor, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if value >= factor:
            return f"{value / factor:.4g} {unit}"
    return f"{value:.4g}"


def short_money(value: float) -> str:
    """Return US dollars for a plot's axis: $0.025, $12, $1.2 K."""
    return f"${short_number(value)}" if value >= 1e3 else f"${value:.6f}".rstrip("0").rstrip(".")


def duration(seconds: float | None) -> str:
    """Return a time span in its two largest units: 840 ms, 4.2 s, 3 min 5 s, 2 h 10 min, 3 d 4 h."""
    if seconds is None:
        return DASH
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, unit, small, small_unit in ((86_400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // small
            return f"{whole // size} {unit} {rest} {small_unit}" if rest else f"{whole // size} {unit}"
    return f"{whole} s"


def span(seconds: float | None) -> str:
    """Return a time span that is known in whole seconds alone: under 1 s, 4 s, 3 min 5 s."""
    if seconds is None:
        return DASH
    return "under 1 s" if seconds < 1 else duration(seconds).replace(".0 s", " s")


def moment(seconds: float | None) -> Markup | str:
    """Return a `<time>` of Unix seconds. The browser shows it in its own zone, as how long ago it is."""
    if not seconds:
        return DASH
    at = datetime.fromtimestamp(seconds, UTC)
    return Markup('<time datetime="{}">{}</time>').format(at.isoformat(), at.strftime("%Y-%m-%d %H:%M:%S UTC"))


def size(count: float | None) -> str:
    """Return bytes as B, KiB, MiB or GiB."""
    if count is None:
        return DASH
    amount = float(count)
    for unit in ("B", "KiB", "MiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} GiB"


def pretty(value: Any) -> str:
    """Return JSON with indents."""
    return json.dumps(value, indent=2, ensure_ascii=False)


def badge(status: str | None) -> Markup:
    """Return a state in its colour. The word says it too."""
    word = status or "unknown"
    return Markup('<span class="badge badge-{}">{}</span>').format(word.replace("_", "-"), word.replace("_", " "))


def copied(text: str) -> Markup:
    """Return an id in code with a button that copies it."""
    return Markup(
        '<code class="id">{0}</code><button type="button" class="copy" data-copy="{0}" '
        'aria-label="Copy {0}">Copy</button>'
    ).format(escape(text))


def query_with(query: Mapping[str, str], name: str, value: str) -> str:
    """Return a page's query with one parameter set to another value."""
    return urlencode({key: known for key, known in {**query, name: value}.items() if known})


def query_without(query: Mapping[str, str], name: str) -> str:
    """Return a page's query without one parameter."""
    return urlencode({key: value for key, value in query.items() if key != name and value})


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for filter_ in (number, money, duration, span, moment, size, pretty, badge, copied):
        environment.filters[filter_.__name__] = filter_
    environment.globals.update(
        version=headrace.__version__, pages=PAGES, query_with=query_with, query_without=query_without
    )
    return environment


_ENVIRONMENT = _environment()
