"""OpenAI's own Python client, unchanged but for its base URL."""

from __future__ import annotations

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam

from headrace.settings import Settings
from tests.fakes.provider import DONE, Behaviour, Provider, answer, chunk, status, stream, usage_of
from tests.service import BOOTSTRAP_KEY, Service

TOOLS: list[ChatCompletionToolParam] = [
    {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
]


async def test_a_plain_completion(openai_client: openai.AsyncOpenAI, provider: Provider, model: str) -> None:
    provider.script(model, answer("The wheel turns.", usage=usage_of(12, 5)))
    completion = await openai_client.chat.completions.create(model=model, messages=[{"role": "user", "content": "hi"}])
    assert completion.choices[0].message.content == "The wheel turns."
    assert completion.choices[0].finish_reason == "stop"
    assert completion.usage is not None
    assert completion.usage.total_tokens == 17
    assert completion._request_id


async def test_a_streamed_completion(openai_client: openai.AsyncOpenAI, provider: Provider, model: str) -> None:
    provider.script(model, answer("The wheel turns.", usage=usage_of(12, 5)))
    chunks = [
        chunk
        async for chunk in await openai_client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": "hi"}],
            stream=True,
            stream_options={"include_usage": True},
        )
    ]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "The wheel turns."
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 17


async def test_the_stream_helper_accumulates_a_tool_call(
    openai_client: openai.AsyncOpenAI, provider: Provider, model: str
) -> None:
    call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "weather", "arguments": ""}}
    provider.script(
        model,
        stream(
            chunk({"role": "assistant", "content": None}),
            chunk({"tool_calls": [call]}),
            chunk({"tool_calls": [{"index": 0, "function": {"arguments": '{"place": '}}]}),
            chunk({"tool_calls": [{"index": 0, "function": {"arguments": '"Ulm"}'}}]}),
            chunk(finish="tool_calls"),
            DONE,
        ),
    )
    async with openai_client.chat.completions.stream(
        model=model, messages=[{"role": "user", "content": "hi"}], tools=TOOLS
    ) as events:
        completion = await events.get_final_completion()
    message = completion.choices[0].message
    assert message.tool_calls is not None
    assert message.tool_calls[0].function.name == "weather"
    assert message.tool_calls[0].function.arguments == '{"place": "Ulm"}'
    assert completion.choices[0].finish_reason == "tool_calls"


async def test_a_conversation_with_a_tool(openai_client: openai.AsyncOpenAI, provider: Provider, model: str) -> None:
    function = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    provider.script(
        model, answer(message={"content": None, "tool_calls": [function]}, finish="tool_calls"), answer("Rain in Ulm.")
    )
    asked = await openai_client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": "hi"}], tools=TOOLS
    )
    message = asked.choices[0].message
    assert message.tool_calls is not None
    told = await openai_client.chat.completions.create(
        model=model,
        messages=[
            {"role": "user", "content": "hi"},
            message,  # type: ignore[list-item]  # the client's documentation appends the message itself
            {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "rain"},
        ],
    )
    assert told.choices[0].message.content == "Rain in Ulm."
    assert (await provider.call(model, 2)).body["messages"][1]["tool_calls"] == [function]


async def test_models_are_listed_and_retrieved(openai_client: openai.AsyncOpenAI) -> None:
    names = [entry.id async for entry in openai_client.models.list()]
    assert "renamed" in names
    assert (await openai_client.models.retrieve("renamed")).id == "renamed"


async def test_a_stored_completion_is_retrieved(openai_client: openai.AsyncOpenAI, model: str) -> None:
    completion = await openai_client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": "hi"}], store=True
    )
    stored = await openai_client.chat.completions.retrieve(completion.id)
    assert stored.choices == completion.choices


async def test_a_stored_completion_is_given_other_metadata(openai_client: openai.AsyncOpenAI, model: str) -> None:
    stored = openai_client.chat.completions
    messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hi"}]
    completion = await stored.create(model=model, messages=messages, store=True, metadata={"customer": "1", "a": "b"})
    updated = await stored.update(completion.id, metadata={"customer": "2"})
    assert (updated.id, updated.choices) == (completion.id, completion.choices)
    assert updated.to_dict()["metadata"] == {"customer": "2"}
    assert (await stored.retrieve(completion.id)).to_dict()["metadata"] == {"customer": "2"}
    assert [found.id async for found in stored.list(metadata={"customer": "2"}, model=model)] == [completion.id]
    assert [found.id async for found in stored.list(metadata={"customer": "1"}, model=model)] == []
    assert (await stored.update(completion.id, metadata=None)).to_dict()["metadata"] == {}


async def test_a_stored_completion_is_deleted(openai_client: openai.AsyncOpenAI, model: str) -> None:
    stored = openai_client.chat.completions
    completion = await stored.create(model=model, messages=[{"role": "user", "content": "hi"}], store=True)
    deleted = await stored.delete(completion.id)
    assert (deleted.id, deleted.object, deleted.deleted) == (completion.id, "chat.completion.deleted", True)
    for again in (stored.retrieve, stored.delete):
        with pytest.raises(openai.NotFoundError):
            await again(completion.id)
    assert [found.id async for found in stored.list(model=model)] == []


async def test_messages_of_a_stored_completion_are_listed(openai_client: openai.AsyncOpenAI, model: str) -> None:
    stored = openai_client.chat.completions
    completion = await stored.create(
        model=model,
        messages=[
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "hi"}]},
        ],
    )
    first, second = [message async for message in stored.messages.list(completion.id)]
    assert (first.content, first.content_parts) == ("Be brief.", None)
    assert second.content is None
    assert second.content_parts is not None
    assert [part.to_dict() for part in second.content_parts] == [{"type": "text", "text": "hi"}]
    assert (await stored.messages.list(completion.id, limit=1)).has_more


async def test_a_wrong_key_is_an_authentication_error(service: Service, model: str) -> None:
    async with openai.AsyncOpenAI(base_url=f"{service.base_url}/v1", api_key="hr_wrong", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError) as raised:
            await client.chat.completions.create(model=model, messages=[{"role": "user", "content": "hi"}])
    assert raised.value.code == "invalid_api_key"
    assert raised.value.request_id


async def test_an_unknown_model_is_not_found(openai_client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as raised:
        await openai_client.chat.completions.create(model="no-such-model", messages=[{"role": "user", "content": "hi"}])
    assert raised.value.code == "model_not_found"


async def test_a_bad_parameter_is_a_bad_request(openai_client: openai.AsyncOpenAI, model: str) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        await openai_client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": "hi"}], temperature=3
        )
    assert raised.value.param == "temperature"


async def test_an_upstream_that_stays_over_its_limit_is_a_rate_limit_error(
    openai_client: openai.AsyncOpenAI, provider: Provider, model: str
) -> None:
    provider.always(model, status(429, retry_after=0))
    with pytest.raises(openai.RateLimitError):
        await openai_client.chat.completions.create(model=model, messages=[{"role": "user", "content": "hi"}])


async def test_an_upstream_that_stays_broken_is_an_internal_server_error(
    openai_client: openai.AsyncOpenAI, provider: Provider, model: str
) -> None:
    provider.always(model, status(500))
    with pytest.raises(openai.InternalServerError):
        await openai_client.chat.completions.create(model=model, messages=[{"role": "user", "content": "hi"}])


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("failure", [status(500), status(429, retry_after=0)], ids=["500", "429"])
async def test_a_client_that_retries_adds_no_attempts_of_its_own(
    service: Service, provider: Provider, model: str, failure: Behaviour, *, streamed: bool
) -> None:
    provider.always(model, failure)
    async with openai.AsyncOpenAI(base_url=f"{service.base_url}/v1", api_key=BOOTSTRAP_KEY) as client:
        assert client.max_retries > 0
        with pytest.raises(openai.APIStatusError) as raised:
            await client.chat.completions.create(
                model=model, messages=[{"role": "user", "content": "hi"}], stream=streamed
            )
    assert raised.value.response.headers["x-should-retry"] == "false"
    assert len(provider.calls_for(model)) == Settings.model_fields["attempts_per_route"].default


async def test_an_error_in_the_middle_of_a_stream_is_raised(
    openai_client: openai.AsyncOpenAI, provider: Provider, model: str
) -> None:
    provider.script(model, stream(chunk({"role": "assistant", "content": "half"})))
    pieces = await openai_client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": "hi"}], stream=True
    )
    assert (await anext(pieces)).choices[0].delta.content == "half"
    with pytest.raises(openai.APIError):
        await anext(pieces)
