"""What the API says when all is over: usage, results of batches, and every response and conversation once more."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from headrace.ids import response_id as response_id_of
from tests.faults.chaos.notes import Json, Notes
from tests.faults.chaos.rig import Rig

_PAGE = 100


@dataclass(slots=True)
class Told:
    """Answers to requests that nothing disturbs any more."""

    usage: dict[str, Json] = field(default_factory=dict)
    """Of each account: all it used, added up."""
    lines: dict[str, list[Json]] = field(default_factory=dict)
    """The results of each batch."""
    responses: dict[str, Json] = field(default_factory=dict)
    """Each response that is still stored."""
    replays: dict[str, list[str]] = field(default_factory=dict)
    """The events of each, from the first to the last."""
    inputs: dict[str, list[Json]] = field(default_factory=dict)
    """The input items of some of them."""
    items: dict[str, list[Json]] = field(default_factory=dict)
    """The items of each conversation."""
    wrong: list[str] = field(default_factory=list)


def ask_at_the_end(rig: Rig, keys: Mapping[str, str], notes: Notes) -> Told:
    """Ask for everything that clients of each account know of."""
    told, chance = Told(), random.Random(len(notes.accepted))
    for account, key in keys.items():
        headers = {"authorization": f"Bearer {key}"}
        with httpx.Client(base_url=f"{rig.urls[0]}/api/v1", headers=headers, timeout=30) as client:
            [told.usage[account]] = client.get("/usage").json()["data"] or [{}]
            for batch_id in [batch_id for batch_id, (owner, *_) in notes.batches.items() if owner == account]:
                batch = client.get(f"/batches/{batch_id}").json()
                files = [batch.get("output_file_id"), batch.get("error_file_id")]
                texts = [client.get(f"/files/{file_id}/content").text for file_id in files if file_id]
                told.lines[batch_id] = [json.loads(line) for text in texts for line in text.splitlines()]
            for job_id, mark in notes.accepted.items():
                ask = notes.asks[mark]
                if ask.account == account and ask.format == "responses":
                    _ask_for_response(client, response_id_of(job_id), told, chance)
            for conversation_id in [each for each, talk in notes.talks.items() if talk.account == account]:
                path = f"/conversations/{conversation_id}/items"
                told.items[conversation_id] = list(_pages(client, path, chance.randint(1, 20)))
                backwards = list(_pages(client, path, _PAGE, order="desc"))
                if backwards[::-1] != told.items[conversation_id]:
                    told.wrong.append(f"{conversation_id}: other items backwards than forwards")
    return told


def _ask_for_response(client: httpx.Client, response_id: str, told: Told, chance: random.Random) -> None:
    """Ask for a response, unless it was deleted or is not stored; and for its events, also from a number on."""
    path = f"/responses/{response_id}"
    answer = client.get(path)
    if answer.status_code == 404:
        return
    told.responses[response_id] = answer.json()
    events = told.replays[response_id] = _events(client.get(path, params={"stream": True}))
    if chance.random() < 0.3:
        after = chance.randrange(len(events) + 1)
        if _events(client.get(path, params={"stream": True, "starting_after": after})) != events[after + 1 :]:
            told.wrong.append(f"{response_id}: other events after number {after}")
        told.inputs[response_id] = list(_pages(client, f"{path}/input_items", chance.randint(1, _PAGE)))


def _events(answer: httpx.Response) -> list[str]:
    blocks = answer.text.split("\n\n")
    return [block for block in blocks if block and not block.startswith(":")]


def _pages(client: httpx.Client, path: str, limit: int, *, order: str = "asc") -> Iterator[Json]:
    """Yield the items of a list, page by page."""
    parameters: dict[str, Any] = {"limit": limit, "order": order}
    while True:
        page = client.get(path, params=parameters).json()
        yield from page["data"]
        if not page["has_more"]:
            return
        parameters["after"] = page["last_id"]
