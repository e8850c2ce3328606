"""Chat chunks as the events of a response: items open and close as the model goes from one to the next.

The items of a response come one after another: reasoning, messages, calls. A call ends where the next item begins, if
its arguments are whole. A call with partial arguments stays open until the end, because the pieces of parallel calls
may alternate.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from headrace.errors import UpstreamTooLargeError
from headrace.formats.chat.fold import Fold, chunks_of
from headrace.formats.chat.texts import PartText, Texts
from headrace.formats.job_facts import JobFacts
from headrace.formats.responses.calls import Call
from headrace.formats.responses.offered import origins
from headrace.formats.responses.options import LOGPROBS
from headrace.formats.responses.output import (
    REFUSAL,
    SUMMARY,
    TEXT,
    THOUGHT,
    Part,
    PartKind,
    Status,
    TextItem,
    text_message,
)
from headrace.formats.responses.response import CUT_OFF, completed
from headrace.formats.responses.resume import resume
from headrace.formats.responses.sealed import PLAIN_THOUGHTS, seal
from headrace.ids import FIRST_INPUT_ITEM, item_id

# The fields that a model wants back in the next turn: Anthropic's signed thoughts, OpenRouter's of any provider, and
# those that a provider of the Responses API has encrypted.
_SEALED = ("thinking_blocks", "thinking_origin", "reasoning_details", "reasoning_items")


class Renderer:
    """Renders one attempt's answer; a response has one choice."""

    def __init__(
        self, job: JobFacts, document: Mapping[str, Any], *, log: Sequence[bytes] = (), from_chat: bool = False
    ) -> None:
        """Take the client's request, and the lines that readers have of the job's earlier attempts."""
        self._job = job
        self._document = document
        self._from_chat = from_chat
        # Lines that no reader has yet, the `output_index` of the next item, and ids that no new call gets.
        self._lines, self._following, self._taken = resume(log)
        self._begun = False
        self._index: int | None = None  # of the choice: the first one that says anything
        self._output: dict[int, dict[str, Any]] = {}
        self._item: TextItem | None = None
        self._part: Part | None = None
        self._field = ""  # by which the open part grows
        self._thought_field = ""
        self._plain = False  # whether a chat model wants the plain thoughts of the open item back
        self._sealed = Fold()
        self._calls: dict[int, Call] = {}
        self._annotations: list[Any] = []
        self._logprobs: list[Any] = []
        self._wants_logprobs = LOGPROBS in (document.get("include") or ())
        reasoning = document.get("reasoning") or {}
        self._thought = SUMMARY if reasoning.get("summary") or reasoning.get("generate_summary") else THOUGHT
        self._origins = origins(document.get("tools"))

    def render(self, chunks: Sequence[Mapping[str, Any] | Texts]) -> list[bytes]:
        """Return the lines of exact chunks.

        Raises:
            UpstreamTooLargeError: There are more items than ids for them.
        """
        lines, self._lines = self._lines, []
        self._begun = self._begun or bool(chunks)
        for chunk in chunks:
            if isinstance(chunk, Texts):
                lines += self._render_texts(chunk)
                continue
            for choice in chunk["choices"]:
                delta, part = choice["delta"], self._part
                if choice["index"] != self._index:
                    if self._index is not None:
                        continue
                    self._index = choice["index"]
                # Nearly every chunk is a piece of the text that is open.
                if part is not None and len(delta) == 1 and choice.get("logprobs") is None:
                    text = delta.get(self._field)
                    if text:
                        part.pieces.add(text)
                        lines.append(part.before + orjson.dumps(text) + part.after)
                        continue
                self._lines = lines
                self._take(delta, choice.get("logprobs"))
                self._lines = []
        return lines

    def _render_texts(self, more: Texts) -> list[bytes]:
        part = self._part
        if more.index != self._index or part is None or self._field != "content":
            return self.render(more.chunks())
        part.pieces.add_all(more.texts)
        before, after = part.before, part.after
        return [before + orjson.dumps(text) + after for text in more.texts]

    def end(self, completion: dict[str, Any]) -> tuple[list[bytes], dict[str, Any]]:
        """Return the lines that close all items, and the whole response."""
        if not self._begun:
            self._lines = self.render(chunks_of(completion))
        choices = completion["choices"]
        choice = next((choice for choice in choices if choice["index"] == self._index), choices[0])
        reason = choice.get("finish_reason")
        status: Status = "incomplete" if reason in CUT_OFF else "completed"
        self._close_calls(status)
        if not (self._output or self._item):
            self._open(TEXT)
        self._close_item(status)
        lines, self._lines = self._lines, []
        output = [self._output[index] for index in sorted(self._output)]
        return lines, self._completed(completion, reason, output)

    def whole(self, completion: dict[str, Any]) -> dict[str, Any]:
        """Return the response of an answer that no reader follows. One that is a text alone takes no events."""
        text = _only_text(completion["choices"])
        if text is None:
            return self.end(completion)[1]
        reason = completion["choices"][0].get("finish_reason")
        status: Status = "incomplete" if reason in CUT_OFF else "completed"
        item = text_message(item_id("msg", self._job.id, self._next_number()), text, status)
        return self._completed(completion, reason, [item])

    def _completed(
        self, completion: dict[str, Any], reason: str | None, output: list[dict[str, Any]]
    ) -> dict[str, Any]:
        return completed(
            self._document,
            job_id=self._job.id,
            created=self._job.created,
            background=self._job.background,
            completion=completion,
            reason=reason,
            output=output,
            finished=int(time.time()),
        )

    def _take(self, delta: Mapping[str, Any], logprobs: Mapping[str, Any] | None) -> None:
        calls = delta.get("tool_calls") or ()
        if not calls or len(delta) > 1:
            self._say(delta, logprobs)
        for piece in calls:
            self._call(piece)

    def _say(self, delta: Mapping[str, Any], logprobs: Mapping[str, Any] | None) -> None:
        """Take all of a delta but its calls of tools."""
        for field in PLAIN_THOUGHTS:
            if (thought := delta.get(field)) and isinstance(thought, str) and self._thought_field in ("", field):
                self._thought_field = field
                self._grow(self._thought, field, thought)
                self._plain = self._from_chat and not isinstance(thought, PartText)
        for field in _SEALED:
            if isinstance(said := delta.get(field), list | dict) and said:
                self._item_of("reasoning")
                self._sealed.add({"choices": [{"index": 0, "delta": {field: said}}]})
        if annotations := delta.get("annotations"):
            self._annotate([_annotation(annotation) for annotation in annotations])
        if logprobs is not None and self._wants_logprobs:
            self._logprobs += [_logprob(token) for token in logprobs.get("content") or ()]
        if text := delta.get("content"):
            self._grow(TEXT, "content", text)
        if refusal := delta.get("refusal"):
            self._grow(REFUSAL, "refusal", refusal)
        if function := delta.get("function_call"):
            self._call({"index": -1, "type": "function", "function": function})

    def _grow(self, kind: PartKind, field: str, text: str) -> None:
        part = self._part
        if part is None or part.kind is not kind:
            part = self._open(kind)
            self._field = field
        if kind is TEXT and self._logprobs:
            logprobs, self._logprobs = self._logprobs, []
            self._lines.append(part.delta(text, logprobs))
        else:
            self._lines.append(part.delta(text))
        if kind is TEXT and self._annotations:
            annotations, self._annotations = self._annotations, []
            self._annotate(annotations)

    def _open(self, kind: PartKind) -> Part:
        """Begin a part, in a new item if the open one is of another type."""
        item = self._item_of("reasoning" if kind in (THOUGHT, SUMMARY) else "message")
        self._part, lines = item.begin(kind)
        self._lines += lines
        return self._part

    def _item_of(self, kind: str) -> TextItem:
        """Return the open item if it is of a type, else a new one."""
        if self._item is not None and self._item.item["type"] == kind:
            return self._item
        self._close_item("completed")
        self._close_calls()
        number = self._next_number()
        prefix, own = ("msg", {"role": "assistant", "content": []}) if kind == "message" else ("rs", {"summary": []})
        item = {"id": item_id(prefix, self._job.id, number), "type": kind, "status": "in_progress", **own}
        self._item = TextItem(item, number)
        self._lines.append(self._item.added())
        return self._item

    def _next_number(self) -> int:
        number = self._following
        if number >= FIRST_INPUT_ITEM:
            raise UpstreamTooLargeError("The model's provider answered with too many items.")
        self._following += 1
        return number

    def _close_item(self, status: Status) -> None:
        item, self._item, self._part, self._field = self._item, None, None, ""
        if item is not None:
            if item.part is not None and item.part.kind is TEXT:
                item.part.logprobs += self._logprobs
                self._logprobs = []
            self._lines += item.end_part()
            if kept := self._kept_thoughts(item.item):
                item.item["encrypted_content"] = seal(kept)
            self._lines += item.close(status)
            self._output[item.output_index] = item.item

    def _kept_thoughts(self, item: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields that the model wants back in the next turn: plain thoughts only where it has no others."""
        plain, self._plain = self._plain, False
        if self._sealed.started:
            [choice] = self._sealed.completion(id="", created=0, model="")["choices"]
            self._sealed = Fold()
            return {field: choice["message"][field] for field in _SEALED if field in choice["message"]}
        if not plain:
            return {}
        text = "".join(part["text"] for part in (*item["summary"], *(item.get("content") or ())))
        # Another model's server may refuse the field.
        return {"model": self._document["model"], self._thought_field: text}

    def _annotate(self, annotations: list[Any]) -> None:
        """Add annotations to the open text, or to the next one if none is open."""
        part = self._part
        if part is None or part.kind is not TEXT:
            self._annotations += annotations
        else:
            self._lines += [part.annotate(annotation) for annotation in annotations]

    def _call(self, piece: Mapping[str, Any]) -> None:
        call = self._calls.get(piece["index"])
        if call is None:
            self._close_item("completed")
            self._close_calls()
            call = Call(piece, self._job.id, self._next_number(), origins=self._origins, taken=self._taken)
            self._calls[piece["index"]] = call
            self._lines.append(call.item.added())
        self._lines += call.take(piece)

    def _close_calls(self, status: Status | None = None) -> None:
        """Close the open calls with a status, or as completed those that are called with something whole."""
        for call in self._calls.values():
            if call.open and (status is not None or call.is_whole()):
                self._lines += call.close(status or "completed")
                self._output[call.item.output_index] = call.item.item


def _only_text(choices: Sequence[Mapping[str, Any]]) -> str | None:
    """Return the text of a whole answer that is nothing but one text; None for any other answer."""
    [choice, *others] = choices
    message = choice["message"]
    if others or choice.get("logprobs") is not None:
        return None
    for name, value in message.items():
        if value and name not in ("role", "content"):
            return None
    return message.get("content") or None


def _annotation(annotation: Mapping[str, Any]) -> dict[str, Any]:
    """Return an annotation as the Responses API has it: without an object of its own for what is cited."""
    kind = annotation["type"]
    return {"type": kind, **annotation.get(kind, {})}


def _logprob(token: Mapping[str, Any]) -> dict[str, Any]:
    others = [_token(other) for other in token.get("top_logprobs") or ()]
    return {**_token(token), "top_logprobs": others}


def _token(token: Mapping[str, Any]) -> dict[str, Any]:
    """Return a token and its log probability. Its bytes are those of its text, if the provider does not say them."""
    said = token.get("bytes")
    return {
        "token": token["token"],
        "logprob": token["logprob"],
        "bytes": list(token["token"].encode()) if said is None else said,
    }
