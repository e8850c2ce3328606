"""Google's generateContent, as providers of kind gemini speak it."""

from headrace.formats.gemini.parse import parse_completion, parse_error, parse_stream
from headrace.formats.gemini.render import MANY_CHOICES, render_headers, render_request, render_url

__all__ = [
    "MANY_CHOICES",
    "parse_completion",
    "parse_error",
    "parse_stream",
    "render_headers",
    "render_request",
    "render_url",
]
