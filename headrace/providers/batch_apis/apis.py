"""The providers' batch APIs by wire format, and what every one of them can do. Gemini's has no client here yet."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from decimal import Decimal
from typing import Protocol

from headrace.catalogue.models import Provider, Route
from headrace.formats.chat.support import Kind
from headrace.providers.batch_apis import anthropic, openai
from headrace.providers.batch_apis.parcel import Lines, NativeResult, Status, Submitted
from headrace.providers.client import ProviderClient


class BatchApi(Protocol):
    """A provider's batch API. Its errors are those of calls, and none of them holds a key."""

    MOST_LINES: int
    """Of one parcel; what is beyond is left behind."""
    MOST_BYTES: int
    """Of one parcel, as it is sent."""
    PRICE_FACTOR: Decimal
    """What a call in a batch costs, as a part of what it costs by itself."""

    async def submit(self, client: ProviderClient, route: Route, lines: Lines, *, parcel_id: str) -> Submitted:
        """Hand lines to the provider, each a job's id and its request.

        Raises:
            UpstreamRefusedError: The provider wants no such batch, or no line can be in one.
            UpstreamError: It failed; there may be a batch nevertheless, for which `find` looks.
        """

    async def poll(self, client: ProviderClient, provider: Provider, remote_id: str) -> Status:
        """Return where a batch stands.

        Raises:
            UpstreamRefusedError: There is no such batch.
            UpstreamError: The provider failed to say.
        """

    def results(self, client: ProviderClient, provider: Provider, status: Status) -> AsyncGenerator[NativeResult, None]:
        """Yield what became of the lines, in any order; a line of which nothing is said was not run.

        Whoever does not read to the end has to close it.

        Raises:
            UpstreamError: They are gone, or the connection broke: what came before is good.
        """

    async def cancel(self, client: ProviderClient, provider: Provider, remote_id: str) -> None:
        """Ask for the end of a batch; one that does not run is left as it is.

        Raises:
            UpstreamError: The provider failed; UpstreamRefusedError: there is no such batch.
        """

    async def find(self, client: ProviderClient, provider: Provider, parcel_id: str) -> str | None:
        """Return the id of the batch that was made of a parcel, or None if there is none or nobody can tell.

        Raises:
            UpstreamError: The provider failed to say.
        """


BATCH_APIS: Mapping[Kind, BatchApi] = {"openai": openai, "anthropic": anthropic}
