"""The providers' batch APIs by wire format, and the interface of each. Gemini's has no client yet."""

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
    """A provider's batch API. It raises the errors that calls raise, without the provider's key."""

    MOST_LINES: int
    """Lines of one parcel; others are left behind."""
    MOST_BYTES: int
    """Bytes of one parcel, as it is sent."""
    PRICE_FACTOR: Decimal
    """The price of a call in a batch, as a part of the price of a single call."""

    async def submit(self, client: ProviderClient, route: Route, lines: Lines, *, parcel_id: str) -> Submitted:
        """Hand lines to the provider, each a job's id and its request.

        Raises:
            UpstreamRefusedError: The provider refuses the batch, or no line can be in one.
            UpstreamError: The call failed. The provider may have made a batch, which `find` looks for.
        """

    async def poll(self, client: ProviderClient, provider: Provider, remote_id: str) -> Status:
        """Return where a batch stands.

        Raises:
            UpstreamRefusedError: There is no such batch.
            UpstreamError: The provider failed to say.
        """

    def results(self, client: ProviderClient, provider: Provider, status: Status) -> AsyncGenerator[NativeResult, None]:
        """Yield the lines' results, in any order; a line without a result was not run.

        A caller that does not read to the end closes the generator.

        Raises:
            UpstreamError: The results are gone, or the connection broke. Results before that are valid.
        """

    async def cancel(self, client: ProviderClient, provider: Provider, remote_id: str) -> None:
        """Cancel a batch, if it still runs.

        Raises:
            UpstreamError: The provider failed; UpstreamRefusedError: there is no such batch.
        """

    async def find(self, client: ProviderClient, provider: Provider, parcel_id: str) -> str | None:
        """Return the id of the batch that was made of a parcel, or None if no such batch is found.

        Raises:
            UpstreamError: The provider failed to say.
        """


BATCH_APIS: Mapping[Kind, BatchApi] = {"openai": openai, "anthropic": anthropic}
