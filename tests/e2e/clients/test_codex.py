"""A session as Codex holds it: nothing is stored, and each request has the whole conversation and all instructions.

The fields and headers are those that version 0.171 of Codex's command line sends; the texts are ours. The items that a
stream finished go into the next request as they came, with what their tools returned.
"""

from __future__ import annotations

import itertools
import json

import httpx
import psycopg
from psycopg.rows import DictRow

from tests.e2e.clients.answers import asked, calling
from tests.e2e.jobs import refused
from tests.e2e.streams import EventStream
from tests.fakes.provider import DONE, Exchange, Json, Provider, answer, chunk, stream, usage_chunk, usage_of
from tests.waiting import eventually

INSTRUCTIONS = "You write code in the user's working copy. Change no more than you must. " * 270
GRAMMAR = 'start: "*** Begin Patch" LF line+ "*** End Patch"\nline: /[^\\n]*/ LF\n%import common.LF'
PATCH = '*** Begin Patch\n*** Add File: a.txt\n+"quoted" \\ and ünïcode\n*** End Patch'
TOOLS: list[Json] = [
    {
        "type": "function",
        "name": "exec_command",
        "description": "Run a command.",
        "strict": False,
        "parameters": {"type": "object", "properties": {"cmd": {"type": "string"}}, "required": ["cmd"]},
    },
    {
        "type": "custom",
        "name": "apply_patch",
        "description": "Change files.",
        "format": {"type": "grammar", "syntax": "lark", "definition": GRAMMAR},
    },
    {
        "type": "namespace",
        "name": "agents",
        "description": "Other agents.",
        "tools": [
            {
                "type": "function",
                "name": "spawn",
                "description": "Start an agent.",
                "strict": False,
                "parameters": {"type": "object", "properties": {"task": {"type": "string"}}},
            }
        ],
    },
]


def message(role: str, text: str) -> Json:
    return {"type": "message", "role": role, "content": [{"type": "input_text", "text": text}]}


class Codex:
    """One session: what it has said and got so far."""

    def __init__(self, client: httpx.AsyncClient, model: str) -> None:
        self.client = client
        self.model = model
        self.history: list[Json] = [
            {**message("developer", INSTRUCTIONS), "id": "msg_ec587d82-cbe5-5674-b832-d5e81b582bd9"},
            message("user", "<environment_context>\n  <cwd>/project</cwd>\n</environment_context>"),
        ]

    async def turn(self, *new: Json) -> list[Json]:
        """Send the conversation with `new` at its end, and return the items of the answer."""
        self.history.extend(new)
        body = {
            "model": self.model,
            "stream": True,
            "input": self.history,
            "tools": TOOLS,
            "tool_choice": "auto",
            "parallel_tool_calls": True,
            "reasoning": {"summary": "auto"},
            "store": False,
            "include": ["reasoning.encrypted_content"],
            "prompt_cache_key": "01a22202-1684-7653-82e1-70093e29db00",
            "client_metadata": {"session_id": "01a22202-1684-7653-82e1-70093e29db00"},
        }
        headers = {"accept": "text/event-stream", "originator": "codex_exec", "session-id": "01a22202"}
        async with self.client.stream("POST", "/responses", json=body, headers=headers) as response:
            assert response.status_code == 200, (await response.aread()).decode()
            events = [event.data for event in await EventStream(response).rest()]
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        assert events[-1]["type"] == "response.completed", events[-1]
        # Codex shows deltas of the item that was added last, and keeps the items that are done.
        open_items: set[str] = set()
        for event in events:
            if event["type"] == "response.output_item.added":
                open_items.add(event["item"]["id"])
            elif event["type"].endswith(".delta"):
                assert event["item_id"] in open_items
        items = [event["item"] for event in events if event["type"] == "response.output_item.done"]
        assert items == events[-1]["response"]["output"]
        assert events[-1]["response"]["usage"]["total_tokens"] > 0
        self.history.extend(items)
        return items


async def patching(exchange: Exchange) -> None:
    """Call the custom tool, which a chat provider knows as a function with one string, whatever its name."""
    [function] = [tool["function"] for tool in exchange.call.body["tools"] if tool["function"]["name"] == "apply_patch"]
    [name] = function["parameters"]["properties"]
    await calling(("apply_patch", {name: PATCH}))(exchange)


async def spawning(exchange: Exchange) -> None:
    """Call the tool of the namespace by the name that a chat provider knows it by."""
    [name] = [tool["function"]["name"] for tool in exchange.call.body["tools"] if "spawn" in tool["function"]["name"]]
    await calling((name, {"task": "test"}))(exchange)


async def test_a_session(client: httpx.AsyncClient, provider: Provider, model: str) -> None:
    provider.script(
        model,
        calling(("exec_command", {"cmd": "ls"}), ("exec_command", {"cmd": "pwd"}), text="I look around."),
        patching,
        spawning,
        answer("Done.", usage=usage_of(6000, 2)),
        answer("You are welcome."),
    )
    codex = Codex(client, model)

    said, *calls = await codex.turn(message("user", "Add a.txt."))
    assert said["content"][0]["text"] == "I look around."
    assert [(call["type"], call["name"], json.loads(call["arguments"])) for call in calls] == [
        ("function_call", "exec_command", {"cmd": "ls"}),
        ("function_call", "exec_command", {"cmd": "pwd"}),
    ]

    [patch] = await codex.turn(*(output("function_call_output", call, call["name"]) for call in calls))
    assert (patch["type"], patch["name"], patch["input"]) == ("custom_tool_call", "apply_patch", PATCH)

    [spawn] = await codex.turn(output("custom_tool_call_output", patch, "ok"))
    assert (spawn["type"], spawn["namespace"], spawn["name"]) == ("function_call", "agents", "spawn")

    [done] = await codex.turn(output("function_call_output", spawn, "started"))
    assert done["content"][0]["text"] == "Done."
    await codex.turn(message("user", "Thanks."))

    # The model has seen one conversation that grew at its end alone: what was sent before is the same to the byte.
    requests = [call.body["messages"] for call in provider.calls_for(model)]
    assert all(later[: len(earlier)] == earlier for earlier, later in itertools.pairwise(requests))
    assert requests[0][0]["content"] == INSTRUCTIONS
    assert [role for role, _ in asked(provider.calls_for(model)[-1])] == [
        "system", "user", "user", "assistant", "tool", "tool", "assistant", "tool", "assistant", "tool", "assistant",
        "user",
    ]  # fmt: skip


def output(kind: str, call: Json, text: str) -> Json:
    return {"type": kind, "call_id": call["call_id"], "output": text}


async def test_reasoning_comes_apart_and_may_be_sent_again(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    pieces = [chunk({"reasoning_content": "The user "}), chunk({"reasoning_content": "wants a file."})]
    provider.script(
        model,
        stream(*pieces, chunk("Which name?"), chunk(finish="stop"), usage_chunk(usage_of(6000, 9)), DONE),
        answer("Done."),
    )
    codex = Codex(client, model)
    reasoning, said = await codex.turn(message("user", "Add a file."))
    assert (reasoning["type"], reasoning["summary"][0]["text"]) == ("reasoning", "The user wants a file.")
    assert said["content"][0]["text"] == "Which name?"
    await codex.turn(message("user", "a.txt"))
    assert [role for role, _ in asked(provider.calls_for(model)[1])][-3:] == ["user", "assistant", "user"]


async def test_nothing_of_a_session_can_be_read_later(
    client: httpx.AsyncClient, database: psycopg.AsyncConnection[DictRow], model: str
) -> None:
    codex = Codex(client, model)
    [said] = await codex.turn(message("user", "Hello."))
    response_id = said["id"].replace("msg_", "resp_")[: len("resp_") + 32]

    async def erased() -> bool:
        cursor = await database.execute("SELECT request, response FROM jobs WHERE model = %s", [model])
        return await cursor.fetchall() == [{"request": None, "response": None}]

    await eventually(erased, "the erasure of the request and its answer")
    refused(await client.get(f"/responses/{response_id}"), 404)
