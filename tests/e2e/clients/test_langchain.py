"""LangChain's `ChatOpenAI` with the Responses API."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_openai import ChatOpenAI, custom_tool
from pydantic import BaseModel, SecretStr

from tests.e2e.clients.answers import asked, calling
from tests.fakes.provider import Exchange, Provider, answer, usage_of
from tests.service import BOOTSTRAP_KEY, Service

ChatModel = Callable[..., ChatOpenAI]


@pytest.fixture
async def chat_model(service: Service) -> AsyncIterator[ChatModel]:
    """Return a model by its name. LangChain shares connections across event loops, and each test has its own."""
    async with httpx.AsyncClient() as connections:

        def chat_model(model: str, **options: Any) -> ChatOpenAI:
            return ChatOpenAI(
                model=model,
                base_url=f"{service.base_url}/v1",
                api_key=SecretStr(BOOTSTRAP_KEY),
                use_responses_api=True,
                max_retries=0,
                http_async_client=connections,
                **options,
            )

        yield chat_model


def weather(city: str) -> str:
    """Return the weather of a city."""
    return f"rain in {city}"


async def ask(model: Any, messages: list[BaseMessage], *, streamed: bool) -> AIMessage:
    """Return the answer, put together by LangChain where it was streamed."""
    if not streamed:
        return AIMessage.model_validate((await model.ainvoke(messages)).model_dump())
    whole: AIMessageChunk | None = None
    async for chunk in model.astream(messages):
        whole = chunk if whole is None else whole + chunk
    assert whole is not None
    return whole


async def test_an_answer(chat_model: ChatModel, provider: Provider, model: str) -> None:
    provider.script(model, answer("Rain.", usage=usage_of(12, 5)))
    message = chat_model(model, temperature=0.5).invoke([SystemMessage("Be brief."), HumanMessage("Weather?")])
    assert message.text == "Rain."
    assert message.usage_metadata is not None
    assert (message.usage_metadata["input_tokens"], message.usage_metadata["output_tokens"]) == (12, 5)
    assert message.response_metadata["id"].startswith("resp_")
    call = provider.calls_for(model)[0]
    assert asked(call) == [("system", "Be brief."), ("user", "Weather?")]
    assert call.body["temperature"] == 0.5


async def test_a_stream(chat_model: ChatModel, provider: Provider, model: str) -> None:
    provider.script(model, answer("Rain all day.", usage=usage_of(12, 5)))
    message = await ask(chat_model(model), [HumanMessage("Weather?")], streamed=True)
    assert message.text == "Rain all day."
    assert message.usage_metadata is not None
    assert message.usage_metadata["total_tokens"] == 17


@pytest.mark.parametrize("chained", [False, True])
@pytest.mark.parametrize("streamed", [False, True])
async def test_a_tool_and_the_turn_after_it(
    chat_model: ChatModel, provider: Provider, model: str, streamed: bool, chained: bool
) -> None:
    provider.script(
        model, calling(("weather", {"city": "Ulm"}), text="I look it up."), answer("A coat."), answer("And boots.")
    )
    tooled = chat_model(model, use_previous_response_id=chained).bind_tools([weather])
    messages: list[BaseMessage] = [HumanMessage("What do I wear?")]
    messages.append(message := await ask(tooled, messages, streamed=streamed))
    assert message.text == "I look it up."
    [call] = message.tool_calls
    assert (call["name"], call["args"]) == ("weather", {"city": "Ulm"})
    messages.append(ToolMessage(weather(**call["args"]), tool_call_id=call["id"]))
    messages.append(await ask(tooled, messages, streamed=streamed))
    messages.append(HumanMessage("Nothing else?"))
    message = await ask(tooled, messages, streamed=streamed)
    assert message.text == "And boots."
    last = provider.calls_for(model)[2]
    assert asked(last) == [
        ("user", "What do I wear?"),
        ("assistant", ["call_0"]),
        ("tool", "rain in Ulm"),
        ("assistant", "A coat."),
        ("user", "Nothing else?"),
    ]
    assert last.body["messages"][1]["content"] == "I look it up."


@custom_tool
def run_code(code: str) -> str:
    """Run code."""
    return f"ran {code}"


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_custom_tool_and_an_image(
    chat_model: ChatModel, provider: Provider, model: str, streamed: bool
) -> None:
    async def behave(exchange: Exchange) -> None:
        [tool] = exchange.call.body["tools"]
        [name] = tool["function"]["parameters"]["properties"]  # a chat provider gets a function of one string
        await calling((tool["function"]["name"], {name: 'print("ünï")'}))(exchange)

    provider.script(model, behave, answer("Done."))
    tooled = chat_model(model, output_version="responses/v1").bind_tools([run_code])
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}
    messages: list[BaseMessage] = [HumanMessage([{"type": "text", "text": "Run this."}, picture])]
    messages.append(message := await ask(tooled, messages, streamed=streamed))
    [call] = message.tool_calls
    messages.append(run_code.invoke(call))
    assert (await ask(tooled, messages, streamed=streamed)).text == "Done."
    sent = provider.calls_for(model)[1].body["messages"]
    assert sent[0]["content"][1]["image_url"]["url"] == "data:image/png;base64,aGk="
    assert (sent[2]["tool_call_id"], sent[2]["content"]) == ("call_0", 'ran print("ünï")')


class Advice(BaseModel):
    """What to wear."""

    coat: bool
    reason: str


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
async def test_an_answer_of_a_type(chat_model: ChatModel, provider: Provider, model: str, method: Any) -> None:
    if method == "json_mode":  # the demo model answers an empty object
        provider.script(model, answer('{"coat": true, "reason": "Rain."}'))
    structured = chat_model(model if method == "json_mode" else "demo").with_structured_output(Advice, method=method)
    assert isinstance(await structured.ainvoke("Answer in JSON: do I need a coat?"), Advice)


async def test_reasoning_is_kept_apart(chat_model: ChatModel, provider: Provider, model: str) -> None:
    provider.script(model, answer("Rain.", message={"reasoning_content": "Clouds."}))
    chat = chat_model(model, output_version="responses/v1", reasoning={"effort": "low", "summary": "auto"})
    message = await ask(chat, [HumanMessage("Weather?")], streamed=True)
    assert message.text == "Rain."
    assert "Clouds." in str([block for block in message.content_blocks if block["type"] == "reasoning"])
    assert provider.calls_for(model)[0].body["reasoning_effort"] == "low"
