"""Calls to a provider's batch API: JSON out and in, and results line by line. Their errors do not hold a key."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping
from typing import Any, Literal
from urllib.parse import quote

import orjson

from headrace.batches.lines import LineReader, RawLine
from headrace.catalogue.models import Provider
from headrace.errors import UpstreamError, UpstreamTooLargeError
from headrace.formats.chat.support import FORMAT_OF
from headrace.formats.lenient import parse_lenient_json
from headrace.formats.registry import FORMATS
from headrace.formats.skipped import skip
from headrace.providers.batch_apis.parcel import NativeResult
from headrace.providers.client import ProviderClient, Upload, without_secret

Reading = Callable[[dict[str, Any]], dict[str, Any]]
"""Returns the completion of one result. Raises UpstreamError if the result is not a completion."""

# A line holds a whole completion, and calls have the same bound.
LARGEST_LINE = 64 * 1024 * 1024
"""Bytes of one result."""
LARGEST_RESULTS = 16 * 1024 * 1024 * 1024
"""Bytes of one file of results."""


def url_of(provider: Provider, *path: str) -> str:
    """Return a URL below the provider's base; each part of the path is quoted, as ids come from outside."""
    return "/".join((provider.base_url.rstrip("/"), *(quote(part, safe="") for part in path)))


async def ask(
    client: ProviderClient,
    provider: Provider,
    url: str,
    *,
    method: Literal["POST", "GET"] = "POST",
    headers: Mapping[str, str] | None = None,
    body: bytes | Upload = b"",
) -> dict[str, Any]:
    """Return the JSON object that answers a request.

    Raises:
        UpstreamError: The answer is not a JSON object, or the call failed, with the class that any call raises.
    """
    secret = provider.secret()
    headers = {**FORMATS[FORMAT_OF[provider.kind]].render_headers(secret), **(headers or {})}
    with _concealed(secret):
        async with client.call(provider, method=method, url=url, headers=headers, body=body) as answer:
            text = await answer.read()
    try:
        document = orjson.loads(text)
    except orjson.JSONDecodeError:
        raise UpstreamError("The provider's batch API answered with something that is not JSON.") from None
    if not isinstance(document, dict):
        raise UpstreamError("The provider's batch API answered with JSON that is not an object.")
    return document


def id_in(document: Mapping[str, Any]) -> str:
    """Return the id of a file or batch that the provider made.

    Raises:
        UpstreamError: The document has no id.
    """
    made = document.get("id")
    if not isinstance(made, str) or not made:
        raise UpstreamError("The provider's batch API answered without the id of the file or batch that it created.")
    return made


async def read_results(
    client: ProviderClient, provider: Provider, urls: Iterable[str], read: Reading
) -> AsyncGenerator[NativeResult, None]:
    """Yield the results in files of JSON lines, each with a `custom_id`; holds a line and a piece of the file.

    A caller that does not read to the end closes the generator. A line without a `custom_id` is skipped and counted.

    Raises:
        UpstreamError: A file is missing, or its connection broke. Results before that are valid.
    """
    secret = provider.secret()
    headers = FORMATS[FORMAT_OF[provider.kind]].render_headers(secret)
    for url in urls:
        lines, size = LineReader(largest=LARGEST_LINE), 0
        with _concealed(secret):
            async with (
                client.call(provider, method="GET", url=url, headers=headers) as answer,
                contextlib.aclosing(answer.unhurried()) as pieces,
            ):
                async for piece in pieces:
                    size += len(piece)
                    if size > LARGEST_RESULTS:
                        raise UpstreamTooLargeError("The provider's batch has more results than any batch.")
                    for result in _parse(lines.feed(piece), provider, read):
                        yield result
        for result in _parse(lines.close(), provider, read):
            yield result


def _parse(lines: Iterable[RawLine], provider: Provider, read: Reading) -> Iterator[NativeResult]:
    secret = provider.secret()
    for line in lines:
        document = _document(line)
        if document is None:
            skip(provider.kind, "result without a custom_id")
            continue
        job_id, size = document["custom_id"], len(line.text or b"")
        try:
            yield NativeResult(job_id, completion=read(document), size=size)
        except UpstreamError as error:
            yield NativeResult(job_id, error=without_secret(error, secret))
        except (LookupError, TypeError, ValueError, AttributeError):
            yield NativeResult(job_id, error=UpstreamError("The provider's batch has a result of an unknown form."))


def _document(line: RawLine) -> dict[str, Any] | None:
    """Return the document of a line with a `custom_id`, or None."""
    try:
        document = parse_lenient_json(line.text or b"")
    except ValueError:
        return None
    return document if isinstance(document, dict) and isinstance(document.get("custom_id"), str) else None


@contextlib.contextmanager
def _concealed(secret: str | None) -> Iterator[None]:
    try:
        yield
    except UpstreamError as error:
        raise without_secret(error, secret) from error.__cause__


def count(counts: Any, *names: str) -> int:
    """Return the sum of these counts, which providers leave out while they do not know them."""
    if not isinstance(counts, Mapping):
        return 0
    return sum(value for name in names if type(value := counts.get(name)) is int)
