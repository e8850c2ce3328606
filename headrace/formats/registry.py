"""The wire formats by name, and the interface that each has. A format has no I/O and does not know the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from headrace.formats import gemini, messages
from headrace.formats.chat import upstream as chat
from headrace.formats.chat.support import Kind


class StreamParser(Protocol):
    """Reads one stream, event by event."""

    done: bool
    """Whether the provider has marked the stream's end. Nothing is read after it."""

    def parse(self, data: bytes, name: bytes = b"") -> Sequence[dict[str, Any]]:
        """Return the `chat.completion.chunk`s that a server-sent event makes, often one, sometimes none.

        They are as exact as the provider is: `headrace.formats.chat.normaliser` makes them OpenAI's.

        Raises:
            UpstreamError: The event is not of the format, or reports an error.
        """


class WireFormat(Protocol):
    """A provider's format: from OpenAI's request to its own, and from its answers to OpenAI's."""

    MANY_CHOICES: bool
    """Whether one call can give `n` choices."""

    def render_url(self, base_url: str, *, model: str, stream: bool) -> str:
        """Return where the request goes."""

    def render_headers(self, secret: str | None) -> dict[str, str]:
        """Return the headers that the format needs, with the provider's key."""

    def render_request(
        self, request: Mapping[str, Any], *, model: str, stream: bool, output_limit: int | None
    ) -> bytes:
        """Return the body for a request that `dropped_parameters` took; `output_limit` is the model's, in tokens."""

    def parse_completion(self, body: bytes) -> dict[str, Any]:
        """Return the `chat.completion` of a whole answer, but for what the job gives it: id, object, created.

        Raises:
            UpstreamError: The body is not a completion, or reports an error.
        """

    def parse_stream(self) -> StreamParser:
        """Return the parser of a new stream."""

    def parse_error(self, body: bytes) -> dict[str, Any]:
        """Return OpenAI's error object and `retry_after` in seconds, as far as an error status's body has them."""


FORMATS: Mapping[Kind, WireFormat] = {"openai": chat, "anthropic": messages, "gemini": gemini}
