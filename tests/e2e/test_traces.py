"""A job's trace, from its client's request over the queue to the provider, and to the receiver of its webhook."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import httpx
import pytest

from tests.e2e.batches import lines
from tests.e2e.batches import submit as submit_batch
from tests.e2e.jobs import chat
from tests.fakes.provider import Provider
from tests.fakes.receiver import Message, Receiver, running_receiver
from tests.service import Service
from tests.waiting import until

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE}-00f067aa0ba902b7-01"
CONTEXT = {"traceparent": PARENT, "tracestate": "vendor=a1,other=b2"}


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with running_receiver() as receiver:
        yield receiver


def context_of(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers of a trace context."""
    return {name: value for name, value in headers.items() if name.startswith("trace")}


def message_of(receiver: Receiver) -> Message:
    """Return the first webhook, once it has come."""
    return until(lambda: receiver.messages, "a webhook")[0]


@pytest.mark.parametrize(
    ("path", "body"), [("/chat/completions", {"stream": True}), ("/responses", {"background": True, "input": "Hi"})]
)
async def test_without_tracing_the_context_of_a_request_is_sent_on_unchanged(
    service: Service,
    client: httpx.AsyncClient,
    provider: Provider,
    receiver: Receiver,
    model: str,
    path: str,
    body: dict[str, object],
) -> None:
    body = {**(chat(model) if "chat" in path else {"model": model}), **body, "webhook": receiver.url}
    (await client.post(path, json=body, headers=CONTEXT)).raise_for_status()
    message = message_of(receiver)
    [call] = provider.calls_for(model)
    assert context_of(message.headers) == context_of(call.headers) == CONTEXT
    log = (service.directory / "worker.log").read_text()
    assert any(TRACE in line and model in line for line in log.splitlines())


async def test_a_request_without_a_context_sends_none(
    client: httpx.AsyncClient, provider: Provider, receiver: Receiver, model: str
) -> None:
    headers = {"traceparent": PARENT.upper(), "tracestate": "a=1"}
    await client.post("/chat/completions", json=chat(model, webhook=receiver.url), headers=headers)
    [call] = provider.calls_for(model)
    assert context_of(message_of(receiver).headers) == context_of(call.headers) == {}


async def test_lines_of_a_batch_have_its_context(
    client: httpx.AsyncClient, provider: Provider, receiver: Receiver, model: str
) -> None:
    client.headers.update(CONTEXT)
    await submit_batch(client, lines(model, 2), webhook=receiver.url)
    assert context_of(message_of(receiver).headers) == CONTEXT
    assert [context_of(call.headers) for call in provider.calls_for(model)] == [CONTEXT, CONTEXT]
