"""The wire formats by name, and the interface of their two halves: toward providers and toward clients.

A format has no I/O and does not know the others. Chat is the hub: what one half reads becomes a chat request or chat
chunks, and the other half makes its own format of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from headrace.formats import gemini, messages
from headrace.formats.chat import client as chat_client
from headrace.formats.chat import upstream as chat
from headrace.formats.chat.support import Format, LimitParameter
from headrace.formats.chat.texts import Texts
from headrace.formats.job_facts import JobFacts
from headrace.formats.responses import client as responses_client
from headrace.formats.responses import upstream as responses
from headrace.formats.translation import Translation


class StreamParser(Protocol):
    """Reads one stream, event by event."""

    done: bool
    """Whether the provider has marked the stream's end. Nothing is read after it."""
    texts_are_alike: bool
    """Whether the event of a piece of text leaves the parser as it was: then one like it need not be parsed."""

    def parse(self, data: bytes, name: bytes = b"") -> Sequence[dict[str, Any]]:
        """Return the `chat.completion.chunk`s that a server-sent event makes, often one, sometimes none.

        They are as exact as the provider is: `headrace.formats.chat.normaliser` makes them OpenAI's.

        Raises:
            UpstreamError: The event is not of the format, or reports an error.
        """


class WireFormat(Protocol):
    """The half toward providers: from the chat request to the format, and from its answers to chat chunks."""

    MANY_CHOICES: bool
    """Whether one call can give `n` choices."""

    def render_url(self, base_url: str, *, model: str, stream: bool) -> str:
        """Return where the request goes."""

    def render_headers(self, secret: str | None) -> dict[str, str]:
        """Return the headers that the format needs, with the provider's key."""

    def render_request(
        self,
        request: Mapping[str, Any],
        *,
        model: str,
        stream: bool,
        output_limit: int | None,
        limit_parameter: LimitParameter | None = None,
    ) -> bytes:
        """Return the body for a request that `dropped_parameters` took.

        `output_limit` is the model's, in tokens. `limit_parameter` is the name that a chat provider has for the
        request's own limit; None keeps the client's.
        """

    def parse_completion(self, body: bytes) -> dict[str, Any]:
        """Return the `chat.completion` of a whole answer, but for what the job gives it: id, object, created.

        Raises:
            UpstreamError: The body is not a completion, or reports an error.
        """

    def parse_stream(self) -> StreamParser:
        """Return the parser of a new stream."""

    def parse_error(self, body: bytes) -> dict[str, Any]:
        """Return OpenAI's error object and `retry_after` in seconds, as far as an error status's body has them."""


class Renderer(Protocol):
    """Renders the answer of one attempt for its client, once: what readers get is what is stored."""

    def render(self, chunks: Sequence[Mapping[str, Any] | Texts]) -> list[bytes]:
        """Return the lines that readers get for exact chunks, complete but for what the API adds.

        A line is a JSON object without line ends.
        """

    def end(self, completion: dict[str, Any]) -> tuple[list[bytes], dict[str, Any]]:
        """Return the last lines, and the whole answer that the job stores, for the folded chat completion."""

    def whole(self, completion: dict[str, Any]) -> dict[str, Any]:
        """Return the answer that the job stores, where no reader follows and so no chunk was rendered."""


class Relay(Renderer, Protocol):
    """Passes the answer of one attempt on from a provider of the client's own format. Its lines are the events."""

    action: str
    """A suffix that is appended to the URL of the format's requests."""
    begun: bool
    """Whether there is something that readers shall see before the model speaks."""

    def render_request(self, *, model: str, stream: bool) -> bytes:
        """Return the body of the request: the client's own."""

    def parse_completion(self, body: bytes) -> dict[str, Any]:
        """Return the `chat.completion` of a whole answer, as the format does."""

    def parse_stream(self) -> StreamParser:
        """Return the parser of a new stream, as the format does; what it reads is passed on."""


class ClientFormat(Protocol):
    """The half toward clients: from a client's checked request to the chat request, and from chat chunks to events."""

    KEEPS_LOG: bool
    """Whether the lines of a job are one log over all its attempts. If not, a new attempt starts the stream over."""

    def translate(self, document: dict[str, Any]) -> Translation:
        """Return the chat request that a checked request means.

        Raises:
            InvalidRequestError: The request cannot be understood; the error names the parameter by the client's path.
        """

    def renderer(
        self, job: JobFacts, document: Mapping[str, Any], *, log: Sequence[bytes] = (), from_chat: bool = False
    ) -> Renderer:
        """Return the renderer of a new attempt at the request `document`.

        `log` are the lines that readers have of the job's earlier attempts, if the format keeps them. `from_chat` tells
        that the provider speaks chat completions.
        """

    def relay(self, job: JobFacts, document: Mapping[str, Any], *, log: Sequence[bytes] = ()) -> Relay | None:
        """Return what passes on the answer of a provider of the same format; None if it is rendered in any case."""

    def lines_of(self, response: dict[str, Any]) -> list[bytes]:
        """Return the lines that a stream of a whole answer has: the same ones at each call."""


FORMATS: Mapping[Format, WireFormat] = {
    "chat": chat,
    "responses": responses,
    "messages": messages,
    "gemini": gemini,
}
"""The halves toward providers, by the format of a route."""

CLIENT_FORMATS: Mapping[Format, ClientFormat] = {"chat": chat_client, "responses": responses_client}
"""The halves toward clients, by the format of a job."""
