"""What the usage of attempts adds to metrics and rates, in the worker and for lines that a provider's batch API ran."""

from __future__ import annotations

from headrace.telemetry import rates
from headrace.telemetry.metrics import COST, TOKENS, bound
from headrace.usage.spent import SpentUsage

_tokens = bound(TOKENS)
_costs = bound(COST)


def count_spent(model: str, spent: SpentUsage) -> None:
    """Count the tokens and the cost of an attempt under a model's label, as its row of usage has them."""
    tokens = spent.tokens
    _tokens("input", model).inc(tokens.prompt_tokens)
    _tokens("output", model).inc(tokens.completion_tokens)
    rates.count_spent(tokens.prompt_tokens, tokens.completion_tokens, spent.cost)
    if tokens.cached_tokens:
        _tokens("cached", model).inc(tokens.cached_tokens)
    if tokens.reasoning_tokens:
        _tokens("reasoning", model).inc(tokens.reasoning_tokens)
    if spent.cost:
        _costs(model).inc(float(spent.cost))
