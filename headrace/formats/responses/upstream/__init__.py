"""The half of the Responses API toward providers: routes of kind openai with `format = "responses"`."""

from headrace.formats.error_objects import parse_error
from headrace.formats.responses.upstream.parse import (
    ENDS,
    OPENINGS,
    StreamParser,
    completion_of,
    parse_completion,
    parse_response,
    parse_stream,
)
from headrace.formats.responses.upstream.render import MANY_CHOICES, render_headers, render_request, render_url

__all__ = [
    "ENDS",
    "MANY_CHOICES",
    "OPENINGS",
    "StreamParser",
    "completion_of",
    "parse_completion",
    "parse_error",
    "parse_response",
    "parse_stream",
    "render_headers",
    "render_request",
    "render_url",
]
