"""OpenAI's batches: https://platform.openai.com/docs/api-reference/batch, and the description of its API of 2026-11.

A file of lines is uploaded, a batch is made of it, and its results are two files: answers and errors. Lines of an
expired or cancelled batch may be in neither.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from decimal import Decimal
from typing import Any
from urllib.parse import urlencode

import orjson

from headrace.catalogue.models import Provider, Route
from headrace.errors import UpstreamError, UpstreamRateLimitError, UpstreamRefusedError
from headrace.formats.chat import upstream as openai
from headrace.formats.chat.normaliser import Normaliser
from headrace.formats.failures import failure
from headrace.formats.skipped import skip
from headrace.providers.batch_apis.calls import ask, count, id_in, read_results, url_of
from headrace.providers.batch_apis.parcel import Lines, NativeResult, Parcel, Status, Submitted, fill
from headrace.providers.client import ProviderClient, Upload, without_secret

# The provider's own limits for a batch: requests, and bytes of its file.
MOST_LINES = 50_000
MOST_BYTES = 200_000_000
PRICE_FACTOR = Decimal("0.5")
"""The price of a call in a batch, as a part of its usual price.

https://help.openai.com/en/articles/9197833-batch-api-faq, read 2026-11.
"""

_ENDPOINT = "/v1/chat/completions"
_METADATA_KEY = "headrace_parcel"
_RUNNING = frozenset({"validating", "in_progress", "finalizing", "cancelling"})
_ENDED = frozenset({"completed", "expired", "cancelled"})

# Seconds that OpenAI keeps the files, which hold customers' texts and would otherwise stay until they are deleted. A
# batch takes a day, and Headrace may be stopped for a few more.
_KEPT_SECONDS = 7 * 86_400
# Batches on a page of the provider's list, and pages that are searched for a parcel.
_PAGE = 100
_MOST_PAGES = 20


async def submit(client: ProviderClient, route: Route, lines: Lines, *, parcel_id: str) -> Submitted:
    """Upload lines, each a job's id and its request, and start a batch of them that `find` knows by `parcel_id`.

    Raises:
        UpstreamRefusedError: The provider refuses the batch, or no line can be in one.
        UpstreamError: The call failed. The provider may have made a batch, which `find` looks for.
    """
    provider = route.provider
    with Parcel(between=b"\n", tail=b"\n") as parcel:
        left_behind = await fill(parcel, route, lines, _render, most_lines=MOST_LINES, most_bytes=MOST_BYTES)
        if not parcel.lines:
            raise UpstreamRefusedError("None of these requests can be part of a batch of the provider's.")
        file_id = await _upload(client, provider, parcel)
    asked = {
        "input_file_id": file_id,
        "endpoint": _ENDPOINT,
        "completion_window": "24h",
        "metadata": {_METADATA_KEY: parcel_id},
        "output_expires_after": {"anchor": "created_at", "seconds": _KEPT_SECONDS},
    }
    made = await ask(client, provider, url_of(provider, "batches"), body=orjson.dumps(asked))
    return Submitted(id_in(made), left_behind)


def _render(job_id: str, body: bytes) -> bytes:
    envelope = orjson.dumps({"custom_id": job_id, "method": "POST", "url": _ENDPOINT})
    return b'%s,"body":%s}' % (envelope[:-1], body)


async def _upload(client: ProviderClient, provider: Provider, parcel: Parcel) -> str:
    boundary = secrets.token_hex(16)
    fields = {"purpose": "batch", "expires_after[anchor]": "created_at", "expires_after[seconds]": str(_KEPT_SECONDS)}
    head = "".join(
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in fields.items()
    )
    head += f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="headrace.jsonl"\r\n'
    head += "Content-Type: application/jsonl\r\n\r\n"
    around = head.encode(), f"\r\n--{boundary}--\r\n".encode()

    async def pieces() -> AsyncIterator[bytes]:
        yield around[0]
        async for piece in parcel.pieces():
            yield piece
        yield around[1]

    file = await ask(
        client,
        provider,
        url_of(provider, "files"),
        headers={"content-type": f"multipart/form-data; boundary={boundary}"},
        body=Upload(parcel.size + sum(map(len, around)), pieces()),
    )
    return id_in(file)


async def poll(client: ProviderClient, provider: Provider, remote_id: str) -> Status:
    """Return where a batch stands.

    Raises:
        UpstreamRefusedError: There is no such batch.
        UpstreamError: The provider failed to say.
    """
    batch = await ask(client, provider, url_of(provider, "batches", remote_id), method="GET")
    counts, state = batch.get("request_counts"), str(batch.get("status"))
    status = Status(
        remote_id,
        "running",
        total=count(counts, "total"),
        completed=count(counts, "completed"),
        failed=count(counts, "failed"),
    )
    if state == "failed":
        return status.failed_with(without_secret(_reason(batch.get("errors")), provider.secret()))
    if state in _ENDED:
        files = (batch.get("output_file_id"), batch.get("error_file_id"))
        return status.ended_with(
            *(url_of(provider, "files", file, "content") for file in files if isinstance(file, str))
        )
    if state not in _RUNNING:
        skip("openai", f"status {state} of a batch")
    return status


def _reason(errors: Any) -> UpstreamError:
    problems = errors.get("data") if isinstance(errors, Mapping) else None
    problem = problems[0] if isinstance(problems, list) and problems and isinstance(problems[0], Mapping) else {}
    code, param, line = problem.get("code"), problem.get("param"), problem.get("line")
    message = str(problem.get("message") or "The provider's batch failed, and it did not say why.")[:1000]
    if line is not None:
        message += f" (line {line})"
    if code == "token_limit_exceeded":  # too many tokens of other batches wait at the provider
        return UpstreamRateLimitError(message, code=code)
    return UpstreamRefusedError(
        message, code=code if isinstance(code, str) else None, param=param if isinstance(param, str) else None
    )


def results(client: ProviderClient, provider: Provider, status: Status) -> AsyncGenerator[NativeResult, None]:
    """Yield the lines' results, in any order; a line without a result was not run.

    A caller that does not read to the end closes the generator.

    Raises:
        UpstreamError: The files are gone, or the connection broke. Results before that are valid.
    """
    return read_results(client, provider, status.results, _read)


def _read(line: Mapping[str, Any]) -> dict[str, Any]:
    response = line.get("response")
    if response is None:
        # The line was not run, as with `batch_expired`: a line that was answered or refused has a response.
        error = line.get("error") or {}
        code, message = error.get("code"), error.get("message")
        raise UpstreamError(
            str(message or "The provider's batch ended before this line was run.")[:1000], code=code and str(code)
        )
    body = orjson.dumps(response["body"])
    if response["status_code"] != 200:
        raise failure(openai.parse_error(body), response["status_code"])
    return Normaliser().completion(openai.parse_completion(body))


async def cancel(client: ProviderClient, provider: Provider, remote_id: str) -> None:
    """Cancel a batch, if it still runs; it may go on for ten minutes.

    Raises:
        UpstreamError: The provider failed; UpstreamRefusedError: there is no such batch.
    """
    try:
        await ask(client, provider, url_of(provider, "batches", remote_id, "cancel"))
    except UpstreamError:
        if (await poll(client, provider, remote_id)).state == "running":
            raise


async def find(client: ProviderClient, provider: Provider, parcel_id: str) -> str | None:
    """Return the id of the batch that was made of a parcel, looked for among the latest two thousand.

    Raises:
        UpstreamError: The provider failed to list them.
    """
    after: dict[str, str] = {}
    for _ in range(_MOST_PAGES):
        url = f"{url_of(provider, 'batches')}?{urlencode({'limit': _PAGE, **after})}"
        page = await ask(client, provider, url, method="GET")
        data = page.get("data")
        batches = [batch for batch in data if isinstance(batch, Mapping)] if isinstance(data, list) else []
        for batch in batches:
            metadata = batch.get("metadata")
            if isinstance(metadata, Mapping) and metadata.get(_METADATA_KEY) == parcel_id:
                return id_in(batch)
        if not batches or not page.get("has_more"):
            break
        after = {"after": id_in(batches[-1])}
    return None
