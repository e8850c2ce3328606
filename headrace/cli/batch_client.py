"""A client of Headrace's API for `headrace batch`, which survives broken connections for as long as a batch takes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar

import click
import httpx

Result = TypeVar("Result")

FINAL = frozenset({"completed", "failed", "expired", "cancelled"})
# Seconds before the first retry; each further pause is twice as long, up to the longest.
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 15.0
# Seconds of silence after which a connection counts as broken.
_SILENCE_SECONDS = 60.0
# Seconds without a first answer after which the server's address counts as wrong.
_UNANSWERED_SECONDS = 60.0
_WRONG_ADDRESS = "Is HEADRACE_URL or --url the address of a Headrace?"
# Results on a page.
_PAGE = 1000


class ServerError(click.ClickException):
    """The server refused a request, or did not answer it."""


class UnavailableError(Exception):
    """The server is unavailable: no connection, or an answer that says so."""


class BatchClient:
    """One account's files and batches.

    A request that only reads is retried: for a minute while the server has never answered, as its address may be wrong,
    and afterwards until it succeeds, as a batch may take a day.
    """

    def __init__(self, url: str, key: str, *, say: Callable[[str], None]) -> None:
        """Take the server's address, with or without `/v1`; `say` gets a message when it cannot be reached.

        Raises:
            UsageError: The address or the key can never work.
        """
        base = _check_url(url).rstrip("/")
        self._base = base if base.endswith("/v1") else f"{base}/api/v1"
        self._say = say
        self._answered = False
        headers = {"authorization": f"Bearer {_check_key(key)}"}
        try:
            self._http = httpx.Client(headers=headers, timeout=_SILENCE_SECONDS)
        except (ValueError, OSError) as error:  # a proxy or certificates in the environment
            raise click.UsageError(f"The environment's proxy or certificates: {error}") from error

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def get(self, path: str, params: Mapping[str, str | int] | None = None) -> dict[str, Any]:
        """Return the object at a path. While the server is unavailable, it is asked again.

        Raises:
            ServerError: The server refused the request.
        """
        return self._patiently(lambda: self._ask("GET", path, params=params))

    def get_once(self, path: str, *, timeout: float) -> dict[str, Any]:
        """Return the object at a path, asked for once, within so many seconds of silence.

        Raises:
            ServerError: The server refused the request.
            UnavailableError: The server is unavailable.
        """
        return self._ask("GET", path, timeout=timeout)

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return the answer to a request that changes something. It is sent once.

        Raises:
            ServerError: The server refused the request, or it is unknown whether the server did it.
        """
        try:
            return self._ask("POST", path, json=body)
        except UnavailableError as error:
            raise ServerError(f"{self._base}: {error}") from error

    def upload(self, path: Path, name: str, on_read: Callable[[int], None]) -> str:
        """Upload a file for a batch and return its id. `on_read` gets the number of bytes sent, now and then.

        Raises:
            ServerError: The server refused the upload, or the connection broke.
        """
        with path.open("rb") as file:
            reading = _Reading(file, on_read)
            try:
                uploaded = self._ask(
                    "POST", "/files", data={"purpose": "batch"}, files={"file": (name, reading)}, timeout=None
                )
            except UnavailableError as error:
                raise ServerError(f"{self._base}: {error}") from error
        file_id: str = uploaded["id"]
        return file_id

    def download(self, file_id: str, target: IO[bytes]) -> None:
        """Write a file to `target`. After a broken connection, the download goes on where it stopped.

        Raises:
            ServerError: The server refused the request.
        """
        written = 0

        def rest() -> None:
            nonlocal written
            headers = {"range": f"bytes={written}-"} if written else {}
            with self._stream(f"/files/{file_id}/content", headers) as response:
                for piece in response.iter_bytes():
                    target.write(piece)
                    written += len(piece)

        self._patiently(rest)

    def watch(self, batch_id: str) -> Iterator[dict[str, Any]]:
        """Yield a batch's progress objects as it changes, and at its end the batch."""
        known: dict[str, str] = {}
        while True:
            last: dict[str, Any] = {}
            for event_id, data in self._patiently(lambda: self._events(batch_id, known)):
                known["last-event-id"] = event_id
                last = data
                yield data
            if last.get("object") == "batch" and last["status"] in FINAL:
                return

    def results(self, batch_id: str, *, follow: bool) -> Iterator[dict[str, Any]]:
        """Yield the results in the order in which lines ended: those so far, or with `follow` all to the end."""
        after: dict[str, str | int] = {}
        while True:
            ended = self.get(f"/batches/{batch_id}")["status"] in FINAL
            page = self.get(f"/batches/{batch_id}/results", {"limit": _PAGE, **after})
            yield from page["data"]
            if page["data"]:
                after = {"after": page["last_id"]}
            if not page["has_more"]:
                if ended or not follow:
                    return
                time.sleep(1)

    def _events(self, batch_id: str, headers: Mapping[str, str]) -> Iterator[tuple[str, dict[str, Any]]]:
        # The connection is opened here, so that a failed one is retried, and read while the caller iterates.
        stream = self._stream(f"/batches/{batch_id}/events", headers)
        response = stream.__enter__()

        def read() -> Iterator[tuple[str, dict[str, Any]]]:
            name = event_id = ""
            try:
                for line in event_lines(response):
                    field, _, value = line.partition(": ")
                    if field == "event":
                        name = value
                    elif field == "id":
                        event_id = value
                    elif field == "data":
                        if name == "error":
                            return  # `watch` reconnects, and the server answers with the reason
                        yield event_id, json.loads(value)
            except (httpx.TransportError, httpx.StreamError):
                pass  # `watch` reconnects with the last id
            finally:
                stream.__exit__(None, None, None)

        return read()

    def _ask(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        try:
            response = self._http.request(method, self._base + path, **options)
        except httpx.TransportError as error:
            raise UnavailableError(str(error) or type(error).__name__) from error
        self._check(response)
        try:
            document = response.json()
        except ValueError:
            document = None
        if not isinstance(document, dict) or "object" not in document:
            raise ServerError(f"{self._base} does not answer as Headrace does. {_WRONG_ADDRESS}")
        return document

    @contextmanager
    def _stream(self, path: str, headers: Mapping[str, str]) -> Iterator[httpx.Response]:
        try:
            with self._http.stream("GET", self._base + path, headers=headers) as response:
                if response.status_code >= 400:
                    response.read()
                self._check(response)
                yield response
        except httpx.TransportError as error:
            raise UnavailableError(str(error) or type(error).__name__) from error

    def _check(self, response: httpx.Response) -> None:
        if response.status_code in (502, 503, 504):
            raise UnavailableError(f"it answers {response.status_code}")
        self._answered = True
        if response.is_redirect:
            raise ServerError(f"{self._base} redirects to {response.headers['location']}. {_WRONG_ADDRESS}")
        if response.status_code >= 400:
            try:
                message = response.json()["error"]["message"]
            except (ValueError, LookupError, TypeError):
                message = _WRONG_ADDRESS
            raise ServerError(f"The server answered {response.status_code}: {message}")

    def _patiently(self, work: Callable[[], Result]) -> Result:
        pause = _FIRST_PAUSE_SECONDS
        began = time.monotonic()
        while True:
            try:
                return work()
            except UnavailableError as error:
                if not self._answered and time.monotonic() - began + pause > _UNANSWERED_SECONDS:
                    raise ServerError(f"{self._base} cannot be reached ({error}). {_WRONG_ADDRESS}") from error
                if pause == _FIRST_PAUSE_SECONDS:
                    until = "until it works" if self._answered else "for a minute"
                    self._say(f"{self._base} cannot be reached ({error}); trying again {until}.")
                time.sleep(pause)
                pause = min(_LONGEST_PAUSE_SECONDS, 2 * pause)


def _check_url(url: str) -> str:
    try:
        parsed = httpx.URL(url)
        right = parsed.scheme in {"http", "https"} and parsed.host and not parsed.query and not parsed.fragment
    except httpx.InvalidURL:
        right = False
    if not right:
        raise click.UsageError(
            f"HEADRACE_URL or --url: '{url}' is not an address such as http://127.0.0.1:8700 or https://example.com."
        )
    return url


def _check_key(key: str) -> str:
    if not (key.isascii() and key.isprintable() and key.strip() == key != ""):
        raise click.UsageError("HEADRACE_API_KEY or --key: a key has no spaces, line ends or letters beyond ASCII.")
    return key


class _Reading:
    """A file that reports how far it has been read."""

    def __init__(self, file: IO[bytes], on_read: Callable[[int], None]) -> None:
        self._file = file
        self._on_read = on_read

    def read(self, size: int = -1) -> bytes:
        piece = self._file.read(size)
        self._on_read(self._file.tell())
        return piece

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def fileno(self) -> int:
        return self._file.fileno()


def event_lines(response: httpx.Response) -> Iterator[str]:
    """Yield the lines of an event stream, which end at a line feed alone.

    httpx's `iter_lines` also cuts at U+2028 and others, which may stand in the text of an event.
    """
    rest = b""
    for piece in response.iter_bytes():
        *lines, rest = (rest + piece).split(b"\n")
        yield from (line.decode() for line in lines)
