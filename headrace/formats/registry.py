"""The wire formats by name, and what every one of them can do. A format has no I/O and knows no other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from headrace.formats import gemini, messages
from headrace.formats.chat import upstream as chat
from headrace.formats.chat.support import Kind


class StreamParser(Protocol):
    """What is known of one stream so far."""

    done: bool
    """Whether the provider has said that the stream is over: nothing is read after that."""

    def parse(self, data: bytes, name: bytes = b"") -> Sequence[dict[str, Any]]:
        """Return the `chat.completion.chunk`s that a server-sent event makes, often one, sometimes none.

        They are as exact as the provider is: `headrace.formats.chat.normaliser` makes them OpenAI's.

        Raises:
            UpstreamError: It makes no sense, or it is an error.
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
            UpstreamError: It is none.
        """

    def parse_stream(self) -> StreamParser:
        """Return the parser of a new stream."""

    def parse_error(self, body: bytes) -> dict[str, Any]:
        """Return what there is of OpenAI's error object, and `retry_after` in seconds, from an error status's body."""


FORMATS: Mapping[Kind, WireFormat] = {"openai": chat, "anthropic": messages, "gemini": gemini}
