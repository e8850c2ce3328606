"""Anthropic's Message Batches: https://platform.claude.com/docs/en/build-with-claude/batch-processing, read 2026-11.

All lines are in the one request that makes the batch. It ends within 24 hours, with a result for each line.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Mapping
from decimal import Decimal
from typing import Any
from urllib.parse import SplitResult, urlsplit

import orjson

from headrace.catalogue.models import Provider, Route
from headrace.errors import UpstreamError, UpstreamRefusedError
from headrace.formats.chat.normaliser import Normaliser
from headrace.formats.messages.parse import parse_completion
from headrace.formats.skipped import skip
from headrace.providers.batch_apis.calls import ask, count, id_in, read_results, url_of
from headrace.providers.batch_apis.parcel import Lines, NativeResult, Parcel, Status, Submitted, fill
from headrace.providers.client import ProviderClient, Upload

# The provider's own limits for a batch: requests, and bytes of the body.
MOST_LINES = 100_000
MOST_BYTES = 256_000_000
PRICE_FACTOR = Decimal("0.5")
"""The price of a call in a batch, as a part of its usual price: "Pricing" in the guide that the module names."""

_PORTS = {"http": 80, "https": 443}


async def submit(client: ProviderClient, route: Route, lines: Lines, *, parcel_id: str) -> Submitted:  # noqa: ARG001  (it has no place there)
    """Start a batch of lines, each a job's id and its request. Anthropic's API has no place for `parcel_id`.

    Raises:
        UpstreamRefusedError: The provider refuses the batch, or no line can be in one.
        UpstreamError: The call failed. The provider may have made a batch, and run and charged its lines.
    """
    provider = route.provider
    with Parcel(head=b'{"requests":[', between=b",", tail=b"]}") as parcel:
        left_behind = await fill(parcel, route, lines, _render, most_lines=MOST_LINES, most_bytes=MOST_BYTES)
        if not parcel.lines:
            raise UpstreamRefusedError("None of these requests can be part of a batch of the provider's.")
        made = await ask(client, provider, _url(provider), body=Upload(parcel.size, parcel.pieces()))
    return Submitted(id_in(made), left_behind)


def _url(provider: Provider, *path: str) -> str:
    return url_of(provider, "messages", "batches", *path)


def _render(job_id: str, body: bytes) -> bytes:
    return b'{"custom_id":%s,"params":%s}' % (orjson.dumps(job_id), body)


async def poll(client: ProviderClient, provider: Provider, remote_id: str) -> Status:
    """Return where a batch stands; its counts stay 0 until it has ended.

    Raises:
        UpstreamRefusedError: There is no such batch.
        UpstreamError: The provider failed to say.
    """
    batch = await ask(client, provider, _url(provider, remote_id), method="GET")
    counts = batch.get("request_counts")
    status = Status(
        remote_id,
        "running",
        total=count(counts, "processing", "succeeded", "errored", "canceled", "expired"),
        completed=count(counts, "succeeded"),
        failed=count(counts, "errored", "canceled", "expired"),
    )
    match batch.get("processing_status"):
        case "ended" if batch.get("archived_at") is not None:
            return status.failed_with(UpstreamError("The provider has archived the results of its batch."))
        case "ended":
            return status.ended_with(_results_url(provider, remote_id, batch.get("results_url")))
        case "in_progress" | "canceling":
            pass
        case unknown:
            skip("anthropic", f"status {unknown} of a batch")
    return status


def _results_url(provider: Provider, remote_id: str, named: Any) -> str:
    """Return the URL of the results, always on the provider's host, because the request carries the provider's key.

    Only path and query are taken from the named URL, so it cannot lead to another host however it is read.
    """
    with contextlib.suppress(ValueError):  # it may be no URL at all
        there, here = urlsplit(named if isinstance(named, str) else ""), urlsplit(provider.base_url)
        if there.path and there.geturl().isprintable() and _origin(there) == _origin(here):
            return f"{here.scheme}://{here.netloc}{there.path}" + (f"?{there.query}" if there.query else "")
    return _url(provider, remote_id, "results")


def _origin(url: SplitResult) -> tuple[str, str | None, int | None]:
    return url.scheme, url.hostname, url.port or _PORTS.get(url.scheme)


def results(client: ProviderClient, provider: Provider, status: Status) -> AsyncGenerator[NativeResult, None]:
    """Yield the lines' results, in any order. A caller that does not read to the end closes the generator.

    Raises:
        UpstreamError: The results are gone, or the connection broke. Results before that are valid.
    """
    return read_results(client, provider, status.results, _read)


def _read(line: Mapping[str, Any]) -> dict[str, Any]:
    result = line["result"]
    match result["type"]:
        case "succeeded":
            return Normaliser().completion(parse_completion(orjson.dumps(result["message"])))
        case "errored":
            # It has the form of an error status's body, which the format's parser reads.
            error = result["error"]
            document = error if error.get("type") == "error" else {"type": "error", "error": error}
            return parse_completion(orjson.dumps(document))
        case "expired" | "canceled" as how:
            code = {"expired": "batch_expired", "canceled": "batch_cancelled"}[how]
            raise UpstreamError("The provider's batch ended before this line was run.", code=code)
        case unknown:
            skip("anthropic", f"result {unknown} of a batch")
            raise UpstreamError("The provider's batch has a result of an unknown form.")


async def cancel(client: ProviderClient, provider: Provider, remote_id: str) -> None:
    """Cancel a batch, if it still runs.

    Raises:
        UpstreamError: The provider failed; UpstreamRefusedError: there is no such batch.
    """
    try:
        await ask(client, provider, _url(provider, remote_id, "cancel"))
    except UpstreamError:
        if (await poll(client, provider, remote_id)).state == "running":
            raise


async def find(client: ProviderClient, provider: Provider, parcel_id: str) -> str | None:  # noqa: ARG001  (no batch shows it)
    """Return None: a batch has no metadata, and shows its lines only when it has ended.

    A batch whose id was lost cannot be found in time, so its lines run again and are paid for twice.
    """
    return None
