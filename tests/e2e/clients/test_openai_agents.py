"""OpenAI's Agents SDK with its default model, which speaks the Responses API."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from agents import (
    Agent,
    ModelSettings,
    OpenAIConversationsSession,
    OpenAIResponsesModel,
    RunConfig,
    Runner,
    RunResult,
    SQLiteSession,
    function_tool,
)
from openai.types.shared import Reasoning
from pydantic import BaseModel

from tests.e2e.clients.answers import asked, calling
from tests.fakes.provider import Provider, answer

QUIET = RunConfig(tracing_disabled=True)
CALL = ("weather", {"city": "Ulm"})


@function_tool
def weather(city: str) -> str:
    """Return the weather of a city."""
    return f"rain in {city}"


@pytest.fixture
def agent(openai_client: openai.AsyncOpenAI, model: str) -> Agent[None]:
    """An agent with a tool."""
    return Agent(
        name="Miller",
        instructions="Be brief.",
        model=OpenAIResponsesModel(model=model, openai_client=openai_client),
        tools=[weather],
    )


async def run(agent: Agent[None], said: str, **options: Any) -> RunResult:
    return await Runner.run(agent, said, run_config=QUIET, **options)


async def test_an_agent_calls_its_tool(agent: Agent[None], provider: Provider, model: str) -> None:
    provider.script(model, calling(CALL, ("weather", {"city": "Bonn"})), answer("Take a coat."))
    result = await run(agent, "Do I need a coat?")
    assert result.final_output == "Take a coat."
    assert result.context_wrapper.usage.requests == 2
    assert all(str(response.response_id).startswith("resp_") for response in result.raw_responses)
    assert asked(provider.calls_for(model)[1]) == [
        ("system", "Be brief."),
        ("user", "Do I need a coat?"),
        ("assistant", ["call_0", "call_1"]),
        ("tool", "rain in Ulm"),
        ("tool", "rain in Bonn"),
    ]


async def test_a_streamed_run(agent: Agent[None], provider: Provider, model: str) -> None:
    provider.script(model, calling(CALL, text="I look it up."), answer("Take a coat."))
    streamed = Runner.run_streamed(agent, "Do I need a coat?", run_config=QUIET)
    text, items = "", []
    async for event in streamed.stream_events():
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
            text += event.data.delta
        elif event.type == "run_item_stream_event":
            items.append(event.name)
    assert text == "I look it up.Take a coat."
    assert streamed.final_output == "Take a coat."
    assert items == ["message_output_created", "tool_called", "tool_output", "message_output_created"]
    assert asked(provider.calls_for(model)[1])[2:] == [("assistant", ["call_0"]), ("tool", "rain in Ulm")]


@pytest.mark.parametrize("streamed", [False, True])
async def test_turns_that_send_what_is_new_only(
    agent: Agent[None], provider: Provider, model: str, streamed: bool
) -> None:
    """Each request of the run names the response before it, within the run and from run to run."""
    provider.script(model, calling(CALL), answer("Take a coat."), answer("And boots."))

    async def turn(said: str, **options: Any) -> str | None:
        if not streamed:
            return (await run(agent, said, **options)).last_response_id
        result = Runner.run_streamed(agent, said, run_config=QUIET, **options)
        async for _ in result.stream_events():
            pass
        return result.last_response_id

    first = await turn("Do I need a coat?", auto_previous_response_id=True)
    await turn("Only a coat?", previous_response_id=first)
    # Instructions are of one request only: the SDK sends them with each.
    assert asked(provider.calls_for(model)[2]) == [
        ("system", "Be brief."),
        ("user", "Do I need a coat?"),
        ("assistant", ["call_0"]),
        ("tool", "rain in Ulm"),
        ("assistant", "Take a coat."),
        ("user", "Only a coat?"),
    ]


@pytest.mark.parametrize("kept_by", ["client", "service"])
async def test_a_session(
    agent: Agent[None], openai_client: openai.AsyncOpenAI, provider: Provider, model: str, kept_by: str
) -> None:
    provider.script(model, calling(CALL), answer("Take a coat."), answer("And boots."))
    session = (
        SQLiteSession("session") if kept_by == "client" else OpenAIConversationsSession(openai_client=openai_client)
    )
    await run(agent, "Do I need a coat?", session=session)
    await run(agent, "Only a coat?", session=session)
    assert asked(provider.calls_for(model)[2]) == [
        ("system", "Be brief."),
        ("user", "Do I need a coat?"),
        ("assistant", ["call_0"]),
        ("tool", "rain in Ulm"),
        ("assistant", "Take a coat."),
        ("user", "Only a coat?"),
    ]
    kinds = [item.get("type", "message") for item in await session.get_items()]
    assert kinds == ["message", "function_call", "function_call_output", "message", "message", "message"]
    popped = await session.pop_item()
    assert popped is not None
    assert "And boots." in str(popped)
    await session.clear_session()


async def test_a_conversation_by_its_id(
    agent: Agent[None], openai_client: openai.AsyncOpenAI, provider: Provider, model: str
) -> None:
    provider.script(model, calling(CALL), answer("Take a coat."), answer("And boots."))
    conversation = await openai_client.conversations.create()
    await run(agent, "Do I need a coat?", conversation_id=conversation.id)
    await run(agent, "Only a coat?", conversation_id=conversation.id)
    assert [role for role, _ in asked(provider.calls_for(model)[2])] == [
        "system", "user", "assistant", "tool", "assistant", "user",
    ]  # fmt: skip


@pytest.mark.parametrize("form", ["anthropic", "gemini", "responses"])
@pytest.mark.parametrize("kept_by", ["client", "service"])
async def test_providers_of_other_formats(
    agent: Agent[None], openai_client: openai.AsyncOpenAI, provider: Provider, model: str, form: str, kept_by: str
) -> None:
    """The provider gets back what its model said, thought and called, whichever side keeps it."""
    name = f"{form}-{model}"
    agent = agent.clone(
        model=OpenAIResponsesModel(model=name, openai_client=openai_client),
        model_settings=ModelSettings(
            store=kept_by == "service",
            reasoning=Reasoning(effort="low", summary="auto"),
            response_include=["reasoning.encrypted_content"],
        ),
    )
    provider.script(
        name,
        calling(CALL, text="I look it up.", thoughts=["Rain", " or not?"]),
        answer("A coat."),
        answer("And boots."),
    )
    session = SQLiteSession("session") if kept_by == "client" else None
    previous = None
    for said, told in (("Do I need a coat?", "A coat."), ("Only a coat?", "And boots.")):
        result = Runner.run_streamed(
            agent,
            said,
            run_config=QUIET,
            session=session,
            previous_response_id=previous,
            auto_previous_response_id=session is None,
        )
        async for _ in result.stream_events():
            pass
        assert result.final_output == told
        previous = result.last_response_id if session is None else None
    sent = json.dumps(provider.calls_for(name)[2].body)
    places = [sent.index(text) for text in ("Do I need", "I look it up.", "rain in Ulm", "A coat.", "Only a coat?")]
    assert places == sorted(places)
    if form != "gemini":  # its thoughts have no signature here, and only those that have one go back
        assert sent.index("c2ln") < sent.index("rain in Ulm")


class Advice(BaseModel):
    coat: bool
    reason: str


async def test_an_answer_of_a_type(openai_client: openai.AsyncOpenAI) -> None:
    model = OpenAIResponsesModel(model="demo", openai_client=openai_client)
    result = await run(Agent(name="Miller", model=model, output_type=Advice), "Do I need a coat?")
    assert isinstance(result.final_output, Advice)


async def test_an_agent_hands_over_to_another(agent: Agent[None], provider: Provider, model: str) -> None:
    baker = Agent[None](name="Baker", instructions="Rhyme.", model=agent.model)
    provider.script(model, calling(("transfer_to_baker", {})), answer("Bread is spread."))
    result = await run(Agent(name="Host", model=agent.model, handoffs=[baker]), "Bread?")
    assert (result.final_output, result.last_agent.name) == ("Bread is spread.", "Baker")
