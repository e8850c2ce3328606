"""Anthropic's messages, as providers of kind anthropic speak them."""

from headrace.formats.messages.parse import parse_completion, parse_error, parse_stream
from headrace.formats.messages.render import MANY_CHOICES, render_headers, render_request, render_url

__all__ = [
    "MANY_CHOICES",
    "parse_completion",
    "parse_error",
    "parse_stream",
    "render_headers",
    "render_request",
    "render_url",
]
