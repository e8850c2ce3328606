"""The items of a Responses request as the messages of a chat request.

What a model said in one turn is several items here and one message there: its text, its thoughts and its calls. A chat
model wants what its tools answered right behind the message that calls them, so an answer moves there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import orjson

from headrace.formats.responses.context import CONTEXT_ITEMS, kind_of
from headrace.formats.responses.offered import Json, flat_name
from headrace.formats.responses.paired import CALLS, OUTPUTS, TOOL_ITEMS, outputs_of_calls
from headrace.formats.responses.sealed import PLAIN_THOUGHTS, open_sealed

# The fields of an assistant's message that a sealed thought may hold, with the types of the objects in them.
_THOUGHTS = {
    "thinking_blocks": ("thinking", "redacted_thinking"),
    "reasoning_details": ("reasoning.text", "reasoning.summary", "reasoning.encrypted"),
    "reasoning_items": ("reasoning",),
}
# What stands between two texts of a turn.
_BREAK = "\n\n"


class _Place(NamedTuple):
    """What of its turn comes before an item."""

    calls: int
    characters: int


class Turns:
    """The messages made of a request's items, the client's path of each, and what a chat request cannot carry."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.messages: list[Json] = []
        self.paths: list[str] = []
        self.own: dict[str, str] = {}
        self.dropped: list[str] = []
        # Items of earlier responses come first. The client has no path for them but the name of what they come with.
        self._context: int = document.get(CONTEXT_ITEMS) or 0
        self._model = document.get("model")
        self._earlier = "conversation" if document.get("conversation") else "previous_response_id"
        self._outputs: Mapping[int, tuple[int, Json]] = {}
        # The open turn of the model's: what it has said up to now, and the places of its calls in the input.
        self._turn: Json = {}
        self._texts: list[str] = []
        self._said = 0  # characters, those between two texts included
        self._called: list[int] = []
        # Its thoughts, each with its place among the items and the characters of text before it in its answer.
        self._placed: list[tuple[Json, _Place, int]] = []
        self._turn_path = ""

    def instruct(self, text: str) -> None:
        """Add the request's instructions."""
        self._add({"role": "system", "content": text}, "instructions")

    def take(self, said: str | Sequence[Json]) -> None:
        """Add the request's input.

        Raises:
            InvalidRequestError: A call has no output, an output no call, or two calls the same id.
        """
        if isinstance(said, str):
            self._add({"role": "user", "content": said}, "input")
            return
        kinds = [kind_of(item) for item in said]
        if not TOOL_ITEMS.isdisjoint(kinds):
            self._outputs = outputs_of_calls(said, first_own=self._context, path=self._path)
        for index, (item, kind) in enumerate(zip(said, kinds, strict=True)):
            if kind == "message":
                if item["role"] == "assistant":
                    self._open(index)
                    self._say(item["content"])
                else:
                    self._close()
                    self._hear(item, index)
            elif kind in CALLS:
                self._call(item, index)
            elif kind in OUTPUTS:
                self._close()
            elif kind == "reasoning":
                self._think(item, index)
            else:
                self.own[self._path(index)] = kind
        self._close()

    def _path(self, index: int) -> str:
        return f"input[{index - self._context}]" if index >= self._context else self._earlier

    def _add(self, message: Json, path: str) -> None:
        self.messages.append(message)
        self.paths.append(path)

    # -- what the model hears ------------------------------------------------------------------------------------------

    def _hear(self, item: Json, index: int) -> None:
        path = self._path(index)
        role = "user" if item["role"] == "user" else "system"
        content: str | list[Json] | None = _only_text(item["content"])
        if content is None:
            content = self._parts(item["content"], path, text_alone=role == "system")
            if not content:
                return
        self._add({"role": role, "content": content}, path)

    def _parts(self, parts: Sequence[Json], path: str, *, text_alone: bool = False) -> str | list[Json]:
        """Return a message's content of parts: a text alone as a string, which every server takes."""
        rendered = []
        for index, part in enumerate(parts):
            if text_alone and part["type"] != "input_text":
                self.own[f"{path}.content[{index}]"] = part["type"]
            elif (made := _part(part)) is not None:
                rendered.append(made)
            else:
                self._keep_own(part, f"{path}.content[{index}]")
        return rendered[0]["text"] if len(rendered) == 1 and rendered[0].keys() == _PLAIN else rendered

    def _keep_own(self, part: Json, path: str) -> None:
        """Note a part that only a provider of the Responses API can take."""
        kind = part["type"]
        self.own[path + {"input_image": ".file_id", "input_file": ".file_url"}.get(kind, "")] = kind

    # -- what the model says -------------------------------------------------------------------------------------------

    def _open(self, index: int) -> None:
        if not self._turn:
            self._turn = {"role": "assistant"}
            self._turn_path = self._path(index)

    def _say(self, content: str | Sequence[Json]) -> None:
        if isinstance(content, str):
            self._add_text(content)
            return
        texts = [part["text"] for part in content if part["type"] != "refusal"]
        if texts:
            self._add_text("".join(texts))
        refusals = [part["refusal"] for part in content if part["type"] == "refusal"]
        if refusals:
            self._turn["refusal"] = "".join([self._turn.get("refusal", ""), *refusals])

    def _add_text(self, text: str) -> None:
        self._texts.append(text)
        self._said += len(text) + len(_BREAK)

    def _call(self, item: Json, index: int) -> None:
        if index not in self._outputs:
            return  # the model was cut off in it
        self._open(index)
        custom = item["type"] == "custom_tool_call"
        arguments = orjson.dumps({"input": item["input"]}).decode() if custom else item["arguments"]
        function = {"name": flat_name(item["name"], item.get("namespace")), "arguments": arguments}
        call = {"id": item["call_id"], "type": "function", "function": function}
        if item.get("extra_content") is not None:
            call["extra_content"] = item["extra_content"]
        self._turn.setdefault("tool_calls", []).append(call)
        self._called.append(index)

    def _think(self, item: Json, index: int) -> None:
        """Add what the model thought, if Headrace sealed it. A chat model takes no other thoughts back."""
        sealed = item.get("encrypted_content")
        fields = (None if sealed is None else open_sealed(sealed)) or {}
        kept: Json = {name: _blocks(fields.get(name), types) for name, types in _THOUGHTS.items()}
        if fields.get("model") == self._model:
            kept |= {name: fields[name] for name in PLAIN_THOUGHTS if isinstance(fields.get(name), str)}
        if not any(kept.values()):
            if index >= self._context:
                self.dropped.append(self._path(index))
            return
        self._open(index)
        place = _Place(len(self._called), self._said)
        signed = kept["thinking_blocks"]
        form, after = _origin(fields.get("thinking_origin"))
        if signed and form is not None:
            self._turn["thinking_origin"] = {"format": form}
        said = ([0] * len(signed) + after)[len(after) :]
        self._placed += [(thought, place, characters) for thought, characters in zip(signed, said, strict=True)]
        self._placed += [(thought, place, 0) for thought in kept["reasoning_items"]]
        for name, thoughts in kept.items():
            if thoughts:
                self._turn[name] = self._turn.get(name, type(thoughts)()) + thoughts

    def _place_thoughts(self, turn: Json, *, calls: int, length: int) -> None:
        """Keep each thought of a turn before one of its calls, as a provider refuses a thought at the end.

        A thought has the number of calls before it in its answer. Where the client sends what each call returned right
        behind it, an answer is several turns, and the thought's place among the items counts. `length` is that of the
        turn's text in characters.
        """
        placed, self._placed = self._placed, []
        after = []
        for thought, among, characters in placed:
            before = thought.get("calls_before", 0)
            known = type(before) is int and before < max(1, calls)
            if not known:
                thought.pop("calls_before", None)
                if among.calls:
                    thought["calls_before"] = among.calls
            if thought["type"] != "reasoning":
                after.append(min(max(characters if known else 0, among.characters), length))
        while after and not after[0]:
            del after[0]
        if after:
            turn["thinking_origin"] = {**turn.get("thinking_origin", {}), "after": after}

    def _close(self) -> None:
        """End the model's turn, if one is open: add its message, and what its tools answered."""
        if not self._turn:
            return
        turn, self._turn = self._turn, {}
        texts, self._texts, self._said = self._texts, [], 0
        called, self._called = self._called, []
        if texts:
            turn["content"] = _BREAK.join(texts)
        self._place_thoughts(turn, calls=len(called), length=len(turn.get("content", "")))
        if not (called or texts or turn.get("refusal")):
            return
        turn.setdefault("content", None)
        self._add(turn, self._turn_path)
        if not called:
            return
        shown: list[Json] = []
        answers = sorted((self._outputs[at] for at in called), key=lambda answer: answer[0])
        for index, item in answers:
            output, media = self._output(item, self._path(index))
            self._add({"role": "tool", "tool_call_id": item["call_id"], "content": output}, self._path(index))
            if media:
                shown += [{"type": "text", "text": f"What the tool call {item['call_id']} returned:"}, *media]
        if shown:
            self._add({"role": "user", "content": shown}, self._path(answers[0][0]))

    def _output(self, item: Json, path: str) -> tuple[str, list[Json]]:
        """Return the text of what a tool answered, and its media, which a chat request has in a user's message only."""
        output = item["output"]
        if isinstance(output, str):
            return output, []
        parts = []
        for index, part in enumerate(output):
            if (made := _part(part)) is not None:
                parts.append(made)
            else:
                self._keep_own(part, f"{path}.output[{index}]")
        text = "".join(part["text"] for part in parts if part["type"] == "text")
        media = [part for part in parts if part["type"] != "text"]
        return (text or "The next message has it.") if media else text, media


_PLAIN = {"type", "text"}


def _only_text(content: str | Sequence[Json]) -> str | None:
    """Return a message's content that is a text, or one part that is nothing else; None for any other content."""
    if isinstance(content, str):
        return content
    if len(content) != 1 or content[0]["type"] != "input_text" or content[0].keys() != _PLAIN:
        return None
    text: str = content[0]["text"]
    return text


def _part(part: Json) -> Json | None:
    """Return a part of a chat message, or None for what only a provider of the Responses API can take."""
    match part["type"]:
        case "input_text" | "output_text":
            made: Json = {"type": "text", "text": part["text"]}
        case "input_image" if part.get("image_url") is not None:
            made = {"type": "image_url", "image_url": {"url": part["image_url"]}}
            if part.get("detail") is not None:
                made["image_url"]["detail"] = part["detail"]
        case "input_file" if part.get("file_data") is not None or part.get("file_id") is not None:
            names = ("file_id",) if part.get("file_data") is None else ("filename", "file_data")
            made = {"type": "file", "file": {name: part[name] for name in names if part.get(name) is not None}}
        case "input_audio":
            made = {"type": "input_audio", "input_audio": part["input_audio"]}
        case _:
            return None
    if part.get("prompt_cache_breakpoint") is not None:
        made["prompt_cache_breakpoint"] = part["prompt_cache_breakpoint"]
    return made


def _blocks(value: Any, types: Sequence[str]) -> list[Json]:
    """Return the objects of these types in a list which a client may have changed."""
    if not isinstance(value, list):
        return []
    return [block for block in value if isinstance(block, dict) and block.get("type") in types]


def _origin(value: Any) -> tuple[str | None, list[int]]:
    """Return the format and the places of a `thinking_origin`, which a client may have changed."""
    if not isinstance(value, dict):
        return None, []
    form, after = value.get("format"), value.get("after")
    places = after if isinstance(after, list) and all(type(place) is int for place in after) else []
    return form if isinstance(form, str) else None, places
