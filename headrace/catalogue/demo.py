"""The demo models, which need no account: their names, and what each of them does.

Every worker serves them itself (`headrace/providers/demo/server.py`). Each has a provider of its own, so that a demo
model that fails opens no circuit of another.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal

from headrace.catalogue.models import Catalogue, Model, Provider

DEMO = "demo"
DEMO_BASE_URL = "http://127.0.0.1:0/v1"
"""The address of every demo model until a worker has filled in the port that it serves them on."""

DEMO_MODELS: Mapping[str, str] = {
    DEMO: "answers at once, about 30 words a second",
    "demo-slow": "answers after 5 s, then 3 words a second",
    "demo-flaky": "fails with 503 the first time that it gets a request, and answers it the next time",
    "demo-failing": "fails with 500 every time",
    "demo-overloaded": "fails with 429 every time, with `retry-after: 2`",
    "demo-broken": "breaks off in the middle of its answer every time",
}
"""What each demo model does, in words that follow its name."""


def with_demo(catalogue: Catalogue) -> Catalogue:
    """Return the catalogue with the demo models, except those whose names are already taken."""
    names = [name for name in DEMO_MODELS if name not in catalogue.models and name not in catalogue.providers]
    return catalogue.having(
        providers={**catalogue.providers, **{name: _provider() for name in names}},
        models={**catalogue.models, **{name: _model(name) for name in names}},
    )


def _provider() -> Provider:
    return Provider(kind="openai", base_url=DEMO_BASE_URL)


def _model(name: str) -> Model:
    return Model(
        routes=[f"{name}/{name}"],
        input_price=Decimal("0.15"),
        output_price=Decimal("0.60"),
        abilities=["tools", "json_schema", "images"],
    )
