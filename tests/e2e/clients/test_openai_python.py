"""OpenAI's own Python client with the Responses API: its helpers, and its blocking half."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from openai.types.responses import ParsedResponse, Response
from pydantic import BaseModel

from tests.e2e.clients.answers import asked, calling
from tests.fakes.provider import Gate, Provider, answer, usage_of
from tests.service import BOOTSTRAP_KEY, Service
from tests.waiting import eventually, until


class Step(BaseModel):
    explanation: str
    minutes: int


class Recipe(BaseModel):
    name: str
    steps: list[Step]
    source: str | None


class Weather(BaseModel):
    """The weather of a city."""

    city: str


async def test_a_pydantic_model_is_parsed(openai_client: openai.AsyncOpenAI) -> None:
    response = await openai_client.responses.parse(model="demo", input="A recipe, please.", text_format=Recipe)
    assert isinstance(response.output_parsed, Recipe)
    assert response.text is not None
    assert response.text.format is not None
    assert response.text.format.type == "json_schema"
    stored = await openai_client.responses.retrieve(response.id)
    assert stored.output_text == response.output_text


async def test_arguments_are_parsed(openai_client: openai.AsyncOpenAI) -> None:
    response = await openai_client.responses.parse(
        model="demo",
        input="What is the weather?",
        tools=[openai.pydantic_function_tool(Weather)],
        tool_choice="required",
    )
    [call] = [item for item in response.output if item.type == "function_call"]
    assert isinstance(call.parsed_arguments, Weather)


async def test_the_stream_helper_puts_the_response_together(
    openai_client: openai.AsyncOpenAI, provider: Provider, model: str
) -> None:
    provider.script(model, calling(("weather", {"city": "Ulm"}), text="I look it up.", usage=usage_of(20, 9)))
    async with openai_client.responses.stream(
        model=model,
        input="Weather?",
        tools=[{"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": False}],
    ) as stream:
        snapshots = [event.snapshot async for event in stream if event.type == "response.output_text.delta"]
        response: ParsedResponse[None] = await stream.get_final_response()
    assert snapshots[-1] == response.output_text == "I look it up."
    message, call = response.output
    assert (message.type, call.type) == ("message", "function_call")
    assert call.type == "function_call"
    assert (call.call_id, call.name, call.arguments) == ("call_0", "weather", '{"city": "Ulm"}')
    assert response.usage is not None
    assert (response.usage.input_tokens, response.usage.output_tokens) == (20, 9)
    stored = await openai_client.responses.retrieve(response.id)
    assert [item.to_dict()["id"] for item in stored.output] == [item.to_dict()["id"] for item in response.output]


async def test_the_stream_helper_parses(openai_client: openai.AsyncOpenAI) -> None:
    async with openai_client.responses.stream(model="demo", input="A recipe, please.", text_format=Recipe) as stream:
        done = [event async for event in stream if event.type == "response.output_text.done"]
        assert isinstance((await stream.get_final_response()).output_parsed, Recipe)
    assert [type(event.parsed) for event in done] == [Recipe]


@pytest.mark.parametrize("streamed", [False, True])
async def test_log_probabilities(openai_client: openai.AsyncOpenAI, streamed: bool) -> None:
    asked_for: dict[str, Any] = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    if streamed:
        async with openai_client.responses.stream(model="demo", input="Hello!", **asked_for) as stream:
            deltas = [event async for event in stream if event.type == "response.output_text.delta"]
            response: Response = await stream.get_final_response()
        assert all("".join(found.token for found in delta.logprobs) == delta.delta for delta in deltas)
    else:
        response = await openai_client.responses.create(model="demo", input="Hello!", **asked_for)
    [message] = response.output
    assert message.type == "message"
    [part] = message.content
    assert part.type == "output_text"
    assert "".join(found.token for found in part.logprobs or ()) == part.text
    assert all(len(found.top_logprobs) == 2 for found in part.logprobs or ())


async def test_a_background_response_is_polled(
    openai_client: openai.AsyncOpenAI, provider: Provider, model: str
) -> None:
    gate = Gate()
    provider.script(model, answer("Rain.", hold=gate))
    response = await openai_client.responses.create(model=model, input="Weather?", background=True)
    assert response.status in {"queued", "in_progress"}
    gate.release()

    async def ended() -> Response | None:
        found = await openai_client.responses.retrieve(response.id)
        return None if found.status in {"queued", "in_progress"} else found

    found = await eventually(ended, "the response's end")
    assert found is not None
    assert (found.status, found.output_text, found.background) == ("completed", "Rain.", True)


async def test_a_stream_is_taken_up_where_it_was_left(
    openai_client: openai.AsyncOpenAI, provider: Provider, model: str
) -> None:
    """The stream helper reads a background response, is closed, and reads on from its last event."""
    provider.script(model, answer("one two three four five six"))
    seen: list[Any] = []
    async with openai_client.responses.stream(model=model, input="Count.", background=True) as stream:
        async for event in stream:
            seen.append(event)
            if event.type == "response.output_text.delta" and event.snapshot == "one two":
                break
    response_id = next(event.response.id for event in seen if event.type == "response.created")
    async with openai_client.responses.stream(
        response_id=response_id, starting_after=seen[-1].sequence_number
    ) as stream:
        rest = [event async for event in stream]
        assert (await stream.get_final_response()).output_text == "one two three four five six"
    numbers = [event.sequence_number for event in [*seen, *rest]]
    assert numbers == list(range(len(numbers)))


def test_the_blocking_client(service: Service, provider: Provider, model: str) -> None:
    """Create, read, stream, chain, cancel, list and delete."""
    provider.script(model, answer("Rain."), answer("Yes, a warm one."))
    with openai.OpenAI(base_url=f"{service.base_url}/v1", api_key=BOOTSTRAP_KEY, max_retries=0) as client:
        first = client.responses.create(model=model, input="Weather?", instructions="Be brief.")
        assert client.responses.retrieve(first.id).output_text == first.output_text == "Rain."
        with client.responses.stream(model=model, input="A coat?", previous_response_id=first.id) as stream:
            text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
            second = stream.get_final_response()
        assert text == second.output_text == "Yes, a warm one."
        assert second.previous_response_id == first.id
        assert asked(provider.calls_for(model)[1]) == [
            ("user", "Weather?"), ("assistant", "Rain."), ("user", "A coat?"),
        ]  # fmt: skip
        items = list(client.responses.input_items.list(second.id, order="asc", limit=1))
        assert [item.type for item in items] == ["message", "message", "message"]
        client.responses.delete(first.id)
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(first.id)
        assert client.responses.retrieve(second.id).output_text == "Yes, a warm one."


def test_a_running_response_is_cancelled(service: Service, provider: Provider, model: str) -> None:
    gate = Gate()
    provider.script(model, answer("Never.", hold=gate))
    with openai.OpenAI(base_url=f"{service.base_url}/v1", api_key=BOOTSTRAP_KEY, max_retries=0) as client:
        response = client.responses.create(model=model, input="Weather?", background=True)
        assert client.responses.cancel(response.id).status == "cancelled"
        assert client.responses.cancel(response.id).status == "cancelled"
        until(lambda: client.responses.retrieve(response.id).status == "cancelled", "the cancelled state")
    gate.release()


async def test_a_conversation(openai_client: openai.AsyncOpenAI, provider: Provider, model: str) -> None:
    provider.script(model, answer("Rain."), answer("Yes."))
    conversation = await openai_client.conversations.create(
        items=[{"type": "message", "role": "developer", "content": "Be brief."}], metadata={"topic": "weather"}
    )
    for said in ("Weather?", "A coat?"):
        response = await openai_client.responses.create(model=model, input=said, conversation=conversation.id)
        assert response.conversation is not None
        assert response.conversation.id == conversation.id
    assert asked(provider.calls_for(model)[1]) == [
        ("system", "Be brief."),
        ("user", "Weather?"),
        ("assistant", "Rain."),
        ("user", "A coat?"),
    ]
    items = [item async for item in openai_client.conversations.items.list(conversation.id, order="asc", limit=2)]
    assert len(items) == 5
    await openai_client.conversations.items.delete(items[0].id or "", conversation_id=conversation.id)
    updated = await openai_client.conversations.update(conversation.id, metadata={"topic": "coats"})
    assert updated.metadata == {"topic": "coats"}
    await openai_client.conversations.delete(conversation.id)
    with pytest.raises(openai.NotFoundError):
        await openai_client.conversations.retrieve(conversation.id)


async def test_input_tokens_are_counted(openai_client: openai.AsyncOpenAI) -> None:
    counted = await openai_client.responses.input_tokens.count(model="demo", input="How many tokens have I?")
    assert counted.object == "response.input_tokens"
    assert counted.input_tokens > 0


async def test_errors_have_their_class(openai_client: openai.AsyncOpenAI, model: str) -> None:
    with pytest.raises(openai.NotFoundError):
        await openai_client.responses.create(model="no-such-model", input="Hello.")
    with pytest.raises(openai.BadRequestError) as raised:
        await openai_client.responses.create(model=model, input="Hello.", previous_response_id="resp_" + "0" * 32)
    assert (raised.value.code, raised.value.param) == ("previous_response_not_found", "previous_response_id")
