"""What holds for every stream of a response: schemas, order, numbers, ids, and the sums of the deltas."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema_rs
from openai import omit
from openai._models import construct_type_unchecked
from openai.lib.streaming.responses._responses import ResponseStreamState
from openai.types.responses import ResponseStreamEvent

from tests.unit.formats.responses.answers import Answer

HERE = Path(__file__).parent
Validate = Callable[[Any], None]


def _definitions(name: str) -> dict[str, Any]:
    definitions: dict[str, Any] = json.loads((HERE / f"{name}.schema.json").read_text())["$defs"]
    return definitions


def _validators(definitions: dict[str, Any], ending: str) -> dict[str, Validate]:
    """Return the checks of events, by type."""
    found = {}
    for name, schema in definitions.items():
        if name.endswith(ending) and "sequence_number" in schema.get("properties", {}):
            (kind,) = schema["properties"]["type"]["enum"]
            found[kind] = _validator(definitions, name)
    return found


def _validator(definitions: dict[str, Any], name: str) -> Validate:
    validate: Validate = jsonschema_rs.validator_for({"$ref": f"#/$defs/{name}", "$defs": definitions}).validate
    return validate


_OPENAI, _OPEN = _definitions("openai_responses"), _definitions("open_responses")
_OPENAI_EVENTS, _OPEN_EVENTS = _validators(_OPENAI, "Event"), _validators(_OPEN, "StreamingEvent")
_OPENAI_RESPONSE, _OPEN_RESPONSE = _validator(_OPENAI, "Response"), _validator(_OPEN, "ResponseResource")
# Open Responses has no custom tools and no namespaces, and another form of reasoning text and of errors, which OpenAI's
# clients do not know.
_OPENAIS = ("response.custom_tool_call_input.", "response.reasoning_text.", "error")

_DELTAS = {
    "response.output_text.delta": "text",
    "response.refusal.delta": "refusal",
    "response.reasoning_text.delta": "text",
    "response.reasoning_summary_text.delta": "text",
    "response.function_call_arguments.delta": "arguments",
    "response.custom_tool_call_input.delta": "input",
}


def check_response(response: dict[str, Any]) -> None:
    """Check a response object in any state."""
    _OPENAI_RESPONSE(response)
    if not _custom(response["output"]) and not _custom(response["tools"]):
        _OPEN_RESPONSE(response)
    assert list(response)[:4] == ["id", "object", "created_at", "status"]


def check_event(event: dict[str, Any]) -> None:
    """Check one event against both schemas, as far as both have it."""
    kind = event["type"]
    _OPENAI_EVENTS[kind](event)
    objects = [event["item"]] if "item" in event else []
    objects += [*event["response"]["output"], *event["response"]["tools"]] if "response" in event else []
    if not kind.startswith(_OPENAIS) and not _custom(objects):
        _OPEN_EVENTS[kind](event)


def check(answer: Answer, *, lost: int = 0) -> None:
    """Check a whole stream; its first `lost` items are of lost attempts."""
    events, response = answer.events, answer.response
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    for event in events:
        check_event(event)
    check_response(response)
    done = _check_order(answer.log)
    assert list(done) == list(range(len(done)))
    assert list(done.values())[lost:] == response["output"]
    assert len({item["id"] for item in done.values()}) == len(done)
    _check_client(events, response)


def _custom(parts: list[dict[str, Any]]) -> bool:
    return any(part["type"] in ("custom", "namespace", "custom_tool_call") for part in parts)


def _check_order(log: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Check that all that grows has been added and is closed once, and return the items by output index."""
    added: dict[int, dict[str, Any]] = {}
    done: dict[int, dict[str, Any]] = {}
    parts: dict[tuple[int, str], Any] = {}
    texts: dict[tuple[int, str, int | None], str] = {}
    said: set[tuple[int, str, int | None]] = set()
    for event in log:
        kind, index = event["type"], event["output_index"]
        assert index not in done
        if kind == "response.output_item.added":
            assert index == len(added)
            assert event["item"]["status"] == "in_progress"
            added[index] = event["item"]
            continue
        if kind == "response.output_item.done":
            item, first = event["item"], added[index]
            same = ("id", "type", "call_id", "role")
            assert [item.get(name) for name in same] == [first.get(name) for name in same]
            assert not any(of == index for of, _ in parts)
            _check_texts(item, index, texts)
            done[index] = item
            continue
        assert event["item_id"] == added[index]["id"]
        place = event.get("content_index", event.get("summary_index"))
        family = "summary" if "summary_index" in event else "content"
        if kind.endswith("_part.added"):
            assert parts.setdefault((index, family), place) == place
            texts[index, family, place] = ""
        elif kind.endswith("_part.done"):
            assert parts.pop((index, family)) == place
            assert event["part"].get("text", event["part"].get("refusal")) == texts[index, family, place]
        elif kind in _DELTAS:
            assert place is None or parts[index, family] == place
            assert (index, family, place) not in said
            assert event["delta"]
            texts[index, family, place] = texts.get((index, family, place), "") + event["delta"]
        elif kind.endswith(".done"):
            text = event[_DELTAS[kind.removesuffix("done") + "delta"]]
            assert text == texts.setdefault((index, family, place), "")
            assert (index, family, place) not in said
            said.add((index, family, place))
    assert added.keys() == done.keys()
    return dict(sorted(done.items()))


def _check_texts(item: dict[str, Any], index: int, texts: dict[tuple[int, str, int | None], str]) -> None:
    """Check that an item holds what its deltas said."""
    if item["type"] in ("function_call", "custom_tool_call"):
        assert item["arguments" if item["type"] == "function_call" else "input"] == texts[index, "content", None]
    for family in ("summary", "content"):
        said = [part.get("text", part.get("refusal")) for part in item.get(family) or ()]
        assert said == [texts[index, family, place] for place in range(len(said))]


def _check_client(events: list[dict[str, Any]], response: dict[str, Any]) -> None:
    """Check that openai-python takes the stream, and has the same answer at its end."""
    state: ResponseStreamState[Any] = ResponseStreamState(input_tools=omit, text_format=omit)
    seen: list[Any] = []
    for event in events:
        parsed: Any = construct_type_unchecked(type_=ResponseStreamEvent, value=event)  # type: ignore[arg-type]
        seen += state.handle_event(parsed)
    last = seen[-1]
    assert last.type == events[-1]["type"]
    said = [part["text"] for item in response["output"] for part in item.get("content", ()) if "annotations" in part]
    assert last.response.output_text == "".join(said)
    assert [item.id for item in last.response.output] == [item["id"] for item in response["output"]]
