"""The providers' batch APIs over HTTP: parcels out, results in, and the faults between."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import pytest

from headrace.catalogue.models import Model, Route
from headrace.catalogue.models import Provider as Entry
from headrace.errors import (
    UpstreamError,
    UpstreamKeyError,
    UpstreamOverloadedError,
    UpstreamRateLimitError,
    UpstreamRefusedError,
    UpstreamTimeoutError,
)
from headrace.formats.chat.support import Kind
from headrace.ids import new_id
from headrace.providers.batch_apis.apis import BATCH_APIS, BatchApi
from headrace.providers.batch_apis.parcel import NativeResult, Status, Submitted
from headrace.providers.client import ProviderClient, Upload
from tests.fakes.native_provider import CUT, LOSE, Batch
from tests.fakes.provider import Gate, Provider, answer, running_provider, status, usage_of

Json = dict[str, Any]
SECRET = "sk-secret-of-a-provider"
MIB = 1024 * 1024


@pytest.fixture(params=BATCH_APIS)
def kind(request: pytest.FixtureRequest) -> Kind:
    """Each format that has a batch API."""
    kind: Kind = request.param
    return kind


@pytest.fixture
async def http() -> AsyncIterator[ProviderClient]:
    """Connections."""
    client = ProviderClient(connections=10)
    yield client
    await client.close()


class Desk:
    """One model's batches, as a scheduler would see them."""

    def __init__(self, http: ProviderClient, upstream: Provider, kind: Kind, model: str) -> None:
        self.http = http
        self.upstream = upstream
        self.kind = kind
        self.api: BatchApi = BATCH_APIS[kind]
        self.entry = Entry(
            kind=kind, base_url=upstream.url("/own"), api_key=SECRET, connect_timeout=5, read_timeout=30, timeout=60
        )
        self.model = model

    @property
    def route(self) -> Route:
        """The way to the model."""
        return Route("p", self.entry, self.model, Model(routes=[f"p/{self.model}"]))

    async def submit(self, requests: Sequence[Mapping[str, Any]], parcel_id: str = "parcel_1") -> Submitted:
        """Hand in requests, as jobs `job_0`, `job_1` and so on."""

        async def lines() -> AsyncIterator[tuple[str, Mapping[str, Any]]]:
            for place, request in enumerate(requests):
                yield f"job_{place}", request

        return await self.api.submit(self.http, self.route, lines(), parcel_id=parcel_id)

    async def poll(self, remote_id: str) -> Status:
        """Ask the provider for the batch's progress."""
        return await self.api.poll(self.http, self.entry, remote_id)

    async def results(self, status: Status) -> dict[str, NativeResult]:
        """Return all results by job."""
        async with contextlib.aclosing(self.api.results(self.http, self.entry, status)) as results:
            found = [result async for result in results]
        assert len({result.job_id for result in found}) == len(found)
        return {result.job_id: result for result in found}

    async def run(self, *texts: str) -> dict[str, NativeResult]:
        """Hand in questions, and return what becomes of them."""
        submitted = await self.submit([asking(text) for text in texts])
        return await self.results(await self.poll(submitted.remote_id))

    def batch(self) -> Batch:
        """Return the only batch that the provider has of the model."""
        (batch,) = self.upstream.native.batches_for(self.model)
        return batch


@pytest.fixture
def desk(http: ProviderClient, provider: Provider, kind: Kind, model: str) -> Desk:
    """A model's batches at the fake provider."""
    return Desk(http, provider, kind, model)


def asking(text: str, **parameters: Any) -> Json:
    return {"model": "asked", "messages": [{"role": "user", "content": text}], **parameters}


def text_of(result: NativeResult) -> str:
    assert result.completion is not None
    return str(result.completion["choices"][0]["message"]["content"])


async def test_lines_are_handed_over_and_answered(desk: Desk) -> None:
    desk.upstream.native.plan(desk.model, running=2)
    desk.upstream.always(desk.model, answer(usage=usage_of(7, 5)))
    submitted = await desk.submit([asking("one", max_tokens=20), asking("two"), asking("drei, ünï ✓\u2028")])
    assert submitted.left_behind == []

    first, second, last = [await desk.poll(submitted.remote_id) for _ in range(3)]
    assert [first.state, second.state, last.state] == ["running", "running", "ended"]
    assert (first.total, first.completed, first.failed) == (3, 0, 0)
    assert (last.total, last.completed, last.failed) == (3, 3, 0)

    results = await desk.results(last)
    assert {name: text_of(result) for name, result in results.items()} == {
        "job_0": "You said: one",
        "job_1": "You said: two",
        "job_2": "You said: drei, ünï ✓\u2028",
    }
    for result in results.values():
        assert result.completion is not None
        assert not result.retryable
        assert result.completion["model"] == desk.model
        assert result.completion["choices"][0]["finish_reason"] == "stop"
        usage = result.completion["usage"]
        assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (7, 5, 12)
    # Every line is asked with the same body as a call, for the route's model and whole.
    calls = desk.upstream.calls_for(desk.model)
    assert [call.body["model"] for call in calls] == [desk.model] * 3
    assert not any(call.streamed for call in calls)
    assert calls[0].body["max_tokens"] == 20


async def test_every_request_carries_the_key_and_nothing_but_what_it_needs(desk: Desk) -> None:
    await desk.run("one")
    requests = desk.upstream.native.requests_for(desk.model)
    for request in requests:
        key = request.headers.get("authorization", "").removeprefix("Bearer ") or request.headers["x-api-key"]
        assert key == SECRET
        assert request.path.startswith("/own/v1/")
        assert "transfer-encoding" not in request.headers
        assert ("content-type" in request.headers) == (request.method == "POST" and request.operation != "cancel")
    expected = ["upload", "create", "poll", "results"] if desk.kind == "openai" else ["create", "poll", "results"]
    assert [request.operation for request in requests] == expected


async def test_openais_files_and_answers_go_away_by_themselves(
    http: ProviderClient, provider: Provider, model: str
) -> None:
    desk = Desk(http, provider, "openai", model)
    await desk.run("one")
    asked = desk.batch().asked
    assert asked["metadata"] == {"headrace_parcel": "parcel_1"}
    assert asked["output_expires_after"] == {"anchor": "created_at", "seconds": 604_800}
    fields = provider.native.files[asked["input_file_id"]].fields
    assert fields == {"purpose": "batch", "expires_after[anchor]": "created_at", "expires_after[seconds]": "604800"}


async def test_lines_fail_one_by_one_as_calls_do(desk: Desk) -> None:
    desk.upstream.script(desk.model, answer("well"), status(400), status(429), status(500), status(503), answer())
    desk.upstream.native.plan(desk.model, expired={5})
    results = await desk.run("a", "b", "c", "d", "e", "f", "g")
    assert text_of(results["job_0"]) == "well"
    assert text_of(results["job_6"]) == "You said: g"
    failed = {name: result for name, result in results.items() if result.error is not None}
    assert {name: (type(one.error), one.retryable) for name, one in failed.items()} == {
        "job_1": (UpstreamRefusedError, False),
        "job_2": (UpstreamRateLimitError, True),
        "job_3": (UpstreamError, True),
        # A line of Anthropic's batch has the type of its error alone, and that of a 503 says nothing of overload.
        "job_4": (UpstreamOverloadedError if desk.kind == "openai" else UpstreamError, True),
        "job_5": (UpstreamError, True),
    }
    expired = results["job_5"].error
    assert expired is not None
    assert expired.code == "batch_expired"


async def test_a_batch_with_lines_that_expired_has_ended(desk: Desk) -> None:
    desk.upstream.native.plan(desk.model, expired={0, 1})
    submitted = await desk.submit([asking("a"), asking("b"), asking("c")])
    stands = await desk.poll(submitted.remote_id)
    assert (stands.state, stands.completed, stands.failed) == ("ended", 1, 2)


async def test_errors_that_were_no_answer_are_read_in_the_formats_words(desk: Desk) -> None:
    if desk.kind == "openai":
        desk.upstream.native.plan(desk.model, errors={0: {"code": "batch_failed", "message": "lost"}})
        expected: tuple[type[UpstreamError], bool] = (UpstreamError, True)
    else:
        error = {"type": "invalid_request_error", "message": "prompt is too long: 300000 tokens > 200000 maximum"}
        desk.upstream.native.plan(desk.model, errors={0: {"type": "error", "error": error, "request_id": "r"}})
        expected = (UpstreamRefusedError, False)
    results = await desk.run("a", "b")
    result = results["job_0"]
    assert (type(result.error), result.retryable) == expected
    assert text_of(results["job_1"]) == "You said: b"


async def test_a_provider_that_repeats_our_key_is_not_repeated(desk: Desk) -> None:
    body = {"type": "error", "error": {"type": "invalid_request_error", "message": f"bad key {SECRET}", "code": SECRET}}
    desk.upstream.script(desk.model, status(400, body))
    results = await desk.run("a")
    error = results["job_0"].error
    assert error is not None
    assert "bad key ***" in error.message
    assert SECRET not in f"{error.message}{error.code}{error.param}"


@pytest.mark.parametrize(
    ("code", "kind_of_error"),
    [
        (400, UpstreamRefusedError),
        (413, UpstreamRefusedError),
        (404, UpstreamRefusedError),
        (401, UpstreamKeyError),
        (402, UpstreamKeyError),
        (403, UpstreamKeyError),
        (429, UpstreamRateLimitError),
        (500, UpstreamError),
        (504, UpstreamTimeoutError),
    ],
)
async def test_a_batch_that_is_not_taken_fails_as_a_call_does(
    desk: Desk, code: int, kind_of_error: type[UpstreamError]
) -> None:
    desk.upstream.native.script(desk.model, "create", code)
    with pytest.raises(UpstreamError) as raised:
        await desk.submit([asking("a")])
    assert type(raised.value) is kind_of_error
    assert desk.upstream.native.batches_for(desk.model) == []


async def test_an_upload_that_is_not_taken_makes_no_batch(http: ProviderClient, provider: Provider, model: str) -> None:
    desk = Desk(http, provider, "openai", model)
    provider.native.script(model, "upload", 400)
    with pytest.raises(UpstreamRefusedError):
        await desk.submit([asking("a")])
    assert [request.operation for request in provider.native.requests_for(model)] == ["upload"]


async def test_nothing_to_hand_over_is_refused_before_the_provider_is_asked(desk: Desk) -> None:
    with pytest.raises(UpstreamRefusedError):
        await desk.submit([])
    with pytest.raises(UpstreamRefusedError):
        await desk.submit([asking("a", service_tier="priority")])
    assert desk.upstream.native.requests_for(desk.model) == []


async def test_lines_that_stay_behind_are_named(desk: Desk) -> None:
    submitted = await desk.submit([asking("a"), asking("b", service_tier="flex"), asking("c")])
    assert submitted.left_behind == ["job_1"]
    assert set(await desk.results(await desk.poll(submitted.remote_id))) == {"job_0", "job_2"}


async def test_openais_batch_that_is_not_valid_has_failed(http: ProviderClient, provider: Provider, model: str) -> None:
    desk = Desk(http, provider, "openai", model)
    full = {"code": "token_limit_exceeded", "message": "Enqueued token limit reached", "line": None, "param": None}
    bad = {"code": "invalid_json_line", "message": f"This line is not JSON {SECRET}", "line": 3, "param": None}
    for problem, expected in ((full, UpstreamRateLimitError), (bad, UpstreamRefusedError)):
        provider.native.plan(model, invalid=[problem])
        stands = await desk.poll((await desk.submit([asking("a")])).remote_id)
        assert stands.state == "failed"
        assert type(stands.error) is expected
        assert stands.error.code == problem["code"]
        assert SECRET not in stands.error.message
        assert await desk.results(stands) == {}


async def test_a_batch_is_cancelled_and_what_was_done_is_kept(desk: Desk) -> None:
    gate = Gate()
    desk.upstream.native.plan(desk.model, hold=gate, done=1)
    submitted = await desk.submit([asking("a"), asking("b"), asking("c")])
    assert (await desk.poll(submitted.remote_id)).state == "running"
    await desk.api.cancel(desk.http, desk.entry, submitted.remote_id)
    await desk.api.cancel(desk.http, desk.entry, submitted.remote_id)
    stands = await desk.poll(submitted.remote_id)
    assert stands.state == "ended"
    results = await desk.results(stands)
    assert text_of(results.pop("job_0")) == "You said: a"
    # OpenAI says nothing of the others.
    assert set(results) == (set() if desk.kind == "openai" else {"job_1", "job_2"})
    assert all(result.retryable for result in results.values())


async def test_cancelling_what_has_ended_changes_nothing(desk: Desk) -> None:
    submitted = await desk.submit([asking("a")])
    assert (await desk.poll(submitted.remote_id)).state == "ended"
    await desk.api.cancel(desk.http, desk.entry, submitted.remote_id)
    assert set(await desk.results(await desk.poll(submitted.remote_id))) == {"job_0"}


async def test_a_cancellation_that_fails_says_so(desk: Desk) -> None:
    desk.upstream.native.plan(desk.model, running=9)
    submitted = await desk.submit([asking("a")])
    desk.upstream.native.script(desk.model, "cancel", 500)
    with pytest.raises(UpstreamError):
        await desk.api.cancel(desk.http, desk.entry, submitted.remote_id)
    assert not desk.batch().cancelled


async def test_a_batch_that_is_not_there_is_refused(desk: Desk) -> None:
    with pytest.raises(UpstreamRefusedError) as raised:
        await desk.poll("batch_nowhere")
    assert raised.value.status == 404
    with pytest.raises(UpstreamRefusedError):
        await desk.poll("../../files?x=")
    with pytest.raises(UpstreamRefusedError):
        await desk.api.cancel(desk.http, desk.entry, "batch_nowhere")


async def test_a_poll_that_fails_can_be_made_again(desk: Desk) -> None:
    submitted = await desk.submit([asking("a")])
    desk.upstream.native.script(desk.model, "poll", 500, 429, CUT)
    for expected in (UpstreamError, UpstreamRateLimitError, UpstreamError):
        with pytest.raises(UpstreamError) as raised:
            await desk.poll(submitted.remote_id)
        assert type(raised.value) is expected
    assert (await desk.poll(submitted.remote_id)).state == "ended"


async def test_results_that_break_off_are_read_again(desk: Desk) -> None:
    submitted = await desk.submit([asking("x" * 5000) for _ in range(20)])
    stands = await desk.poll(submitted.remote_id)
    desk.upstream.native.script(desk.model, "results", 503, CUT)
    with pytest.raises(UpstreamError):
        await desk.results(stands)
    came: list[str] = []

    async def take() -> None:
        async with contextlib.aclosing(desk.api.results(desk.http, desk.entry, stands)) as results:
            async for result in results:
                came.append(text_of(result))  # noqa: PERF401  (what came before the end is kept)

    with pytest.raises(UpstreamError):
        await take()
    assert 0 < len(came) < 20
    assert set(came) == {f"You said: {'x' * 5000}"}
    assert len(await desk.results(stands)) == 20


async def test_what_is_no_result_is_skipped(desk: Desk) -> None:
    desk.upstream.native.plan(
        desk.model, extra=b'\n\nnot json\n[]\n{"custom_id": 7}\n{"no": "id"}\n{"custom_id": "job_9"}\n'
    )
    results = await desk.run("a", "b")
    # What says whose it is, and nothing else, is not lost.
    assert set(results) == {"job_0", "job_1", "job_9"}
    assert results["job_9"].retryable


async def test_a_reader_may_leave_early(desk: Desk) -> None:
    submitted = await desk.submit([asking("x" * 5000) for _ in range(50)])
    stands = await desk.poll(submitted.remote_id)
    async with contextlib.aclosing(desk.api.results(desk.http, desk.entry, stands)) as results:
        assert (await anext(results)).completion is not None
    assert len(await desk.results(stands)) == 50


async def test_a_reader_may_take_its_time(desk: Desk) -> None:
    desk.entry = desk.entry.model_copy(update={"read_timeout": 0.8})
    submitted = await desk.submit([asking("x" * 5000) for _ in range(50)])
    stands = await desk.poll(submitted.remote_id)
    seen = 0
    async with contextlib.aclosing(desk.api.results(desk.http, desk.entry, stands)) as results:
        async for _ in results:
            if seen == 0:
                await asyncio.sleep(1.5)  # longer than the provider may be silent
            seen += 1
    assert seen == 50


async def test_a_batch_whose_id_was_lost_is_found_by_its_parcel(desk: Desk) -> None:
    parcel_id = new_id("parcel")
    desk.upstream.native.script(desk.model, "create", LOSE)
    with pytest.raises(UpstreamError):
        await desk.submit([asking("a")], parcel_id)
    found = await desk.api.find(desk.http, desk.entry, parcel_id)
    if desk.kind == "anthropic":
        assert found is None  # Anthropic's batches carry no parcel id
    else:
        assert found == desk.batch().id
        assert await desk.api.find(desk.http, desk.entry, new_id("parcel")) is None


async def test_a_batch_is_found_pages_away(http: ProviderClient, model: str) -> None:
    with running_provider() as upstream:
        desk = Desk(http, upstream, "openai", model)
        old = await desk.submit([asking("a")], "parcel_old")
        for _ in range(210):
            await desk.submit([asking("a")], "parcel_other")
        assert await desk.api.find(http, desk.entry, "parcel_old") == old.remote_id
        assert await desk.api.find(http, desk.entry, "parcel_none") is None
        lists = [request.path for request in upstream.native.requests if request.operation == "list"]
        assert len(lists) == 6
        upstream.native.script("*", "list", 500)
        with pytest.raises(UpstreamError):
            await desk.api.find(http, desk.entry, "parcel_old")


async def test_the_key_goes_to_no_other_host(http: ProviderClient, provider: Provider, model: str) -> None:
    with running_provider() as stranger:
        desk = Desk(http, provider, "anthropic", model)
        provider.native.plan(model, results_url=f"{stranger.url()}/messages/batches/b/results")
        assert set(await desk.run("a")) == {"job_0"}
        assert stranger.native.requests == []


async def test_results_are_read_where_the_provider_says(http: ProviderClient, provider: Provider, model: str) -> None:
    desk = Desk(http, provider, "anthropic", model)
    gate = Gate()
    provider.native.plan(model, hold=gate)
    submitted = await desk.submit([asking("a")])
    elsewhere = f"{provider.url('/elsewhere')}/messages/batches/{submitted.remote_id}/results"
    batch = desk.batch()
    batch.base_url = provider.url("/elsewhere")
    gate.release()
    stands = await desk.poll(submitted.remote_id)
    assert stands.results == (elsewhere,)
    assert set(await desk.results(stands)) == {"job_0"}
    assert provider.native.requests_for(model, "results")[0].path.startswith("/elsewhere/")


async def test_an_upload_may_take_longer_than_a_silence(desk: Desk) -> None:
    desk.entry = desk.entry.model_copy(update={"connect_timeout": 0.5, "read_timeout": 0.5})

    async def lines() -> AsyncIterator[bytes]:
        for letter in b"slowly":
            await asyncio.sleep(0.3)  # each is within what a silence may last, all of them are not
            yield bytes([letter])

    upload = Upload(6, lines())
    headers = {"authorization": f"Bearer {SECRET}"}
    with pytest.raises(UpstreamRefusedError) as raised:
        async with desk.http.call(desk.entry, url=f"{desk.entry.base_url}/nowhere", headers=headers, body=upload):
            pass
    assert raised.value.status == 404


async def test_a_large_parcel_goes_and_comes_whole(desk: Desk) -> None:
    lines = 10_000
    requests = [asking(f"question {place}") for place in range(lines)]
    submitted = await desk.submit(requests)
    assert submitted.left_behind == []
    results = await desk.results(await desk.poll(submitted.remote_id))
    assert {name: text_of(result) for name, result in results.items()} == {
        f"job_{place}": f"You said: question {place}" for place in range(lines)
    }
