"""Clients that talk turn by turn: in chains of responses, and in conversations, to which they add items too."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from typing import Any

import httpx

from tests.faults.chaos.asking import GaveUpError
from tests.faults.chaos.notes import Ask, Json, Talk, marks_in
from tests.faults.chaos.responses import ANSWERED, Kind, RespondingClients
from tests.faults.chaos.turns import Piece, pieces_of_items, text_of


class TalkingClients(RespondingClients):
    """They note what was said before each turn, and what they know to be in each conversation."""

    def _talking_kinds(self) -> dict[Kind, float]:
        return {self._chain: 2, self._conversation: 1.5, self._conversations_stranger: 0.4}

    # -- chains -------------------------------------------------------------------------------------------------------

    async def _chain(self, http: httpx.AsyncClient, account: str) -> None:
        """Ask for turns that go on from each other, from earlier ones too, and after earlier ones are deleted."""
        chain: list[tuple[str, list[Piece], list[Json]]] = []  # ids, what was said up to there, and the open calls
        for _ in range(self._chance.randint(2, 6)):
            previous: Json = {}
            said: list[Piece] = []
            open_calls: list[Json] = []
            if chain:
                response_id, said, open_calls = chain[-1] if self._chance.random() < 0.8 else self._chance.choice(chain)
                previous = {"previous_response_id": response_id}
            response, ask = await self._turn(http, account, open_calls, said, **previous)
            if response is not None:
                spoken = [piece for piece in ask.own if piece[0] != "system"]
                said = [*said, *spoken, *pieces_of_items(response["output"])]
                chain.append((response["id"], said, calls_of(response)))
        if len(chain) > 2 and self._chance.random() < 0.5:
            await self._delete(http, account, chain[0][0])
            response_id, said, open_calls = chain[-1]
            await self._turn(http, account, open_calls, said, previous_response_id=response_id)

    async def _turn(
        self,
        http: httpx.AsyncClient,
        account: str,
        open_calls: Sequence[Json],
        said: Sequence[Piece] = (),
        *,
        heard: Collection[str] = (),
        tools: bool | None = None,
        **fields: Any,
    ) -> tuple[Json | None, Ask]:
        """Ask for one turn in any way; return its response if it has an answer.

        Its input begins with the outputs of the open calls. `said` is the context, and `heard` the marks of all turns
        of a conversation that are over.
        """
        flags: Json = {name: True for name in ("stream", "background") if self._chance.random() < 0.5}
        chance = self._chance.random() < 0.6 if tools is None else tools
        ask = self._respond(account, calls=open_calls, tools=chance, store=True, **flags, **fields)
        ask.keyed, ask.context, ask.heard = True, said, frozenset(heard)
        ask.conversation = fields.get("conversation")
        response = await self._answer(http, ask)
        if response is None or response["status"] not in ANSWERED:
            return None, ask
        if marks_in(text_of(response)) != {ask.mark}:
            raise GaveUpError  # the checker finds it
        return response, ask

    # -- conversations ------------------------------------------------------------------------------------------------

    async def _conversation(self, http: httpx.AsyncClient, account: str) -> None:
        conversation_id = await self._create_conversation(http, account)
        talk, open_calls = self.notes.talks[conversation_id], list[Json]()
        heard = set(talk.added)
        for _ in range(self._chance.randint(2, 5)):
            if not open_calls and self._chance.random() < 0.2:
                turns = (self._say(http, account, conversation_id, heard, tools=False) for _ in range(2))
                for marks, _ in await asyncio.gather(*turns):
                    heard |= marks
            elif not open_calls and self._chance.random() < 0.2:
                mark = self._mark(account)
                body = {"items": self._messages(f"note {mark}")}
                path = f"/conversations/{conversation_id}/items"
                await self._insist(http, "POST", account, path, good={200}, key=mark, body=body)
                talk.added.append(mark)
                heard.add(mark)
            else:
                marks, calls = await self._say(http, account, conversation_id, heard, open_calls)
                if marks:
                    heard |= marks
                    open_calls = calls

    async def _create_conversation(self, http: httpx.AsyncClient, account: str) -> str:
        mark = self._mark(account)
        added = [mark] if self._chance.random() < 0.5 else []
        body: Json = {"items": self._messages(f"note {mark}")} if added else {}
        answer = await self._insist(http, "POST", account, "/conversations", good={200}, key=mark, body=body)
        conversation_id: str = answer.json()["id"]
        self.notes.talks[conversation_id] = Talk(account, added)
        self.notes.keyed.setdefault(mark, set()).add(conversation_id)
        return conversation_id

    async def _say(
        self,
        http: httpx.AsyncClient,
        account: str,
        conversation_id: str,
        heard: set[str],
        open_calls: list[Json] | None = None,
        *,
        tools: bool | None = None,
    ) -> tuple[set[str], list[Json]]:
        """Ask for a turn; return its mark and its calls if it has an answer, else nothing."""
        response, ask = await self._turn(
            http, account, open_calls or (), heard=heard, tools=tools, conversation=conversation_id
        )
        return (set(), []) if response is None else ({ask.mark}, calls_of(response))

    async def _conversations_stranger(self, http: httpx.AsyncClient, account: str) -> None:
        """Ask for another account's conversations on every path, and for a response in one."""
        foreign = [conversation_id for conversation_id, talk in self.notes.talks.items() if talk.account != account]
        if not foreign:
            return
        conversation_id = self._chance.choice(foreign)
        path = f"/conversations/{conversation_id}"
        for asked in (path, f"{path}/items"):
            await self._insist(http, "GET", account, asked, good={404})
        items = {"items": self._messages("repeat this")}
        await self._insist(http, "POST", account, f"{path}/items", good={404}, body=items)
        body = {"model": "good", "input": "repeat this", "conversation": conversation_id}
        await self._insist(http, "POST", account, "/responses", good={404}, body=body)
        await self._insist(http, "DELETE", account, path, good={404})


def calls_of(response: Json) -> list[Json]:
    """Return the calls of functions that a response ends with, which wait for their outputs."""
    return [item for item in response["output"] if item["type"] == "function_call"]
