"""The fake provider's batch APIs, OpenAI's and Anthropic's, written from the providers' documents as its formats are.

A batch is known by the model of its lines, as calls are. How it goes is planned, as in `provider.native.plan(model,
running=2, expired={3})`, and what its requests fail with is scripted: `provider.native.script(model, "create", 429)`.
When it ends, its lines get the behaviours that calls would get, scripted by `provider.script`. Every request is kept.
"""

from __future__ import annotations

import asyncio
import email.parser
import email.policy
import json
import re
import secrets
import threading
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, Protocol
from urllib.parse import parse_qs, urlsplit

from tests.fakes import formats

Json = dict[str, Any]
Operation = Literal["upload", "create", "poll", "list", "results", "cancel"]
RunLine = Callable[[str, str, Mapping[str, str], Json], Awaitable[tuple[int, Json]]]
"""Answers a call of a format (kind, path, headers, body) with a status and JSON."""

PATHS = re.compile(
    r"(?P<prefix>.*)/v1/(?P<what>files|batches|messages/batches)(?:/(?P<id>[^/?]+))?(?:/(?P<do>\w+))?(?:\?.*)?"
)
ANYONE: Final = "*"
"""The model of requests that are for no batch: a list's."""

LOSE: Final = "lose"
"""In a script: do as asked, and break the connection instead of answering."""

CUT: Final = "cut"
"""In a script: break the connection in the middle of the answer."""

_CUSTOM_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_DAY = 86_400
_CREATED = 1_700_000_000
_EXPIRED = "This request could not be executed before the completion window expired."


class Openable(Protocol):
    """A gate, as `tests.fakes.provider` has it."""

    @property
    def is_open(self) -> bool: ...

    async def pass_through(self) -> None: ...


@dataclass(frozen=True)
class Plan:
    """How batches of a model go. Lines are meant by their place, from 0."""

    running: int = 0
    """Polls that still see it under way."""
    hold: Openable | None = None
    """It is under way until this is open, whatever `running` says."""
    told: Openable | None = None
    """It is made, but the answer that says so waits until this is open."""
    sent: Openable | None = None
    """Its results wait until this is open."""
    expired: Collection[int] = ()
    """Lines that it never comes to."""
    errors: Mapping[int, Json] = field(default_factory=dict)
    """Lines whose result is this error, in the format's own words, and that are not run."""
    invalid: Sequence[Json] = ()
    """OpenAI's only: the batch fails with these errors, and no line is run."""
    done: int = 0
    """How many lines were run when it is cancelled."""
    results_url: str | None = None
    """Anthropic's only: the text in place of the results' URL."""
    extra: bytes = b""
    """What stands before the results, to the byte."""


@dataclass
class Batch:
    """A batch of either format."""

    id: str
    kind: str
    model: str
    plan: Plan
    lines: list[Json]
    """OpenAI's lines or Anthropic's requests."""
    headers: Mapping[str, str]
    asked: Json
    """The document that made the batch, without Anthropic's requests."""
    base_url: str
    polls: int = 0
    cancelled: bool = False
    state: Literal["running", "ended", "failed"] = "running"
    results: list[Json] = field(default_factory=list)
    output: str | None = None
    failures: str | None = None


@dataclass(frozen=True)
class Request:
    """A request that came."""

    method: str
    path: str
    headers: Mapping[str, str]
    operation: str
    model: str
    body: bytes


@dataclass(frozen=True)
class Reply:
    """The answer to a request."""

    status: int
    body: bytes
    content_type: str = "application/json"
    cut_at: int | None = None
    """Bytes of the answer, with headers, after which the connection is closed."""


@dataclass
class File:
    """An uploaded file, or one with results."""

    model: str
    content: bytes
    fields: Mapping[str, str] = field(default_factory=dict)


class Native:
    """Both APIs. `run_line` answers the lines."""

    def __init__(self, run_line: RunLine) -> None:
        self.requests: list[Request] = []
        self.files: dict[str, File] = {}
        self.batches: dict[str, Batch] = {}
        self._run_line = run_line
        self._plans: dict[str, Plan] = {}
        self._scripts: defaultdict[tuple[str, str], deque[int | str]] = defaultdict(deque)
        self._lock = threading.Lock()
        self.settling = asyncio.Lock()

    def plan(self, model: str, **plan: Any) -> None:
        """Say how the next batches of a model go: the fields of `Plan`."""
        self._plans[model] = replace(Plan(), **plan)

    def script(self, model: str, operation: Operation, *faults: int | str) -> None:
        """Set the faults of the next requests of a kind: a status, `LOSE`, `CUT`, or 0 for a good answer."""
        with self._lock:
            self._scripts[model, operation].extend(faults)

    def batches_for(self, model: str) -> list[Batch]:
        """Return the batches of a model, oldest first."""
        return [batch for batch in list(self.batches.values()) if batch.model == model]

    def requests_for(self, model: str, operation: Operation | None = None) -> list[Request]:
        """Return the requests that were about a model's batches, oldest first."""
        with self._lock:
            return [one for one in self.requests if one.model == model and operation in (None, one.operation)]

    async def handle(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Reply:
        """Answer a request whose path is one of `PATHS`."""
        match = PATHS.fullmatch(path)
        assert match is not None
        kind = "anthropic" if match["what"].startswith("messages") else "openai"
        key = (headers.get("authorization") or "").removeprefix("Bearer ") or headers.get("x-api-key")
        if not key:
            return _refusal(kind, 401, "no key")
        base_url = f"http://{headers.get('host')}{match['prefix']}/v1"
        call = _Call(self, kind, method, path, headers, body, base_url)
        about = match["id"]
        match match["what"], method, match["do"]:
            case "files", "POST", None:
                return await call.serve("upload", call.uploaded_model(), call.upload)
            case "files", "GET", "content" if about in self.files:
                return await call.serve("results", self.files[about].model, lambda: call.content(about))
            case "batches" | "messages/batches", "POST", None if about is None:
                return await call.serve("create", call.created_model(), call.create)
            case "batches", "GET", None if about is None:
                return await call.serve("list", ANYONE, call.list)
            case "batches" | "messages/batches", "GET", None if about in self.batches:
                return await call.serve("poll", self.batches[about].model, lambda: call.poll(self.batches[about]))
            case "messages/batches", "GET", "results" if about in self.batches:
                return await call.serve("results", self.batches[about].model, lambda: call.lines(self.batches[about]))
            case "batches" | "messages/batches", "POST", "cancel" if about in self.batches:
                return await call.serve("cancel", self.batches[about].model, lambda: call.cancel(self.batches[about]))
        self._note(Request(method, path, headers, "unknown", ANYONE, b""))
        return _refusal(kind, 404, f"no such thing: {path}")

    def _note(self, request: Request) -> int | str:
        with self._lock:
            self.requests.append(request)
            script = self._scripts[request.model, request.operation]
            return script.popleft() if script else 0

    def plan_of(self, model: str) -> Plan:
        """Return how a batch of the model goes."""
        return self._plans.get(model) or Plan()

    async def settle(self, batch: Batch) -> None:
        """Let a batch go on by a poll; when it ends, run its lines."""
        plan = batch.plan
        if batch.state != "running":
            return
        batch.polls += 1
        if plan.invalid:
            batch.state = "failed"
            return
        waits = not plan.hold.is_open if plan.hold is not None else batch.polls <= plan.running
        if waits and not batch.cancelled:
            return
        batch.results = [await self._run(batch, place, line) for place, line in enumerate(batch.lines)]
        batch.state = "ended"

    async def _run(self, batch: Batch, place: int, line: Json) -> Json:
        """Return a line's custom id, its outcome, and its answer."""
        name, body = line["custom_id"], line["body" if batch.kind == "openai" else "params"]
        if place in batch.plan.expired:
            return {"custom_id": name, "how": "expired"}
        if batch.cancelled and place >= batch.plan.done:
            return {"custom_id": name, "how": "canceled"}
        if place in batch.plan.errors:
            return {"custom_id": name, "how": "error", "answer": batch.plan.errors[place]}
        path = f"/v1/{'batches' if batch.kind == 'openai' else 'messages/batches'}/{batch.id}/{name}"
        status, answer = await self._run_line(batch.kind, path, batch.headers, body)
        return {"custom_id": name, "how": "answered", "status": status, "answer": answer}


@dataclass
class _Call:
    """One request, and how it is answered."""

    native: Native
    kind: str
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    base_url: str

    async def serve(self, operation: Operation, model: str, answer: Callable[[], Any]) -> Reply:
        fault = self.native._note(
            Request(self.method, self.path, self.headers, operation, model, b"" if operation == "upload" else self.body)
        )
        if isinstance(fault, int) and fault:
            return _refusal(self.kind, fault, f"scripted {fault}")
        reply = answer()
        if not isinstance(reply, Reply):
            reply = await reply
        assert isinstance(reply, Reply)
        plan = self.native.plan_of(model)
        gate = {"create": plan.told, "results": plan.sent}.get(operation)
        if gate is not None:
            await gate.pass_through()
        if fault == LOSE:
            return replace(reply, cut_at=0)
        return replace(reply, cut_at=len(reply.body) // 2) if fault == CUT else reply

    # -- files ---------------------------------------------------------------------------------------------------------

    def _form(self) -> File:
        head = f"content-type: {self.headers['content-type']}\r\n\r\n".encode()
        parts = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + self.body)
        fields: dict[str, str] = {}
        content = b""
        for part in parts.iter_parts():
            name = str(part.get_param("name", header="content-disposition"))
            data = part.get_payload(decode=True)
            assert isinstance(data, bytes)
            if name == "file":
                content = data
            else:
                fields[name] = data.decode()
        lines = _json_lines(content)
        return File(lines[0]["body"]["model"] if lines else ANYONE, content, fields)

    def uploaded_model(self) -> str:
        return self._form().model

    def upload(self) -> Reply:
        file = self._form()
        if file.fields.get("purpose") != "batch":
            return _refusal(self.kind, 400, "purpose")
        file_id = f"file-{secrets.token_hex(8)}"
        self.native.files[file_id] = file
        made = {"id": file_id, "object": "file", "bytes": len(file.content), "purpose": "batch", "status": "processed"}
        return _json({**made, "created_at": _CREATED, "filename": "headrace.jsonl"})

    def content(self, file_id: str) -> Reply:
        return Reply(200, self.native.files[file_id].content, "application/octet-stream")

    # -- batches -------------------------------------------------------------------------------------------------------

    def created_model(self) -> str:
        asked = json.loads(self.body)
        if self.kind == "anthropic":
            return str(asked["requests"][0]["params"].get("model")) if asked.get("requests") else ANYONE
        file = self.native.files.get(asked.get("input_file_id"))
        return ANYONE if file is None else file.model

    def create(self) -> Reply:
        model, asked = self.created_model(), json.loads(self.body)
        if self.kind == "anthropic":
            lines = asked.pop("requests")
            problem = self._anthropic_problem(lines)
        else:
            file = self.native.files.get(asked.get("input_file_id"))
            lines = [] if file is None else _json_lines(file.content)
            problem = _openai_problem(asked, lines)
        if problem is not None:
            return _refusal(self.kind, 400, problem)
        batch_id = f"{'batch_' if self.kind == 'openai' else 'msgbatch_'}{secrets.token_hex(8)}"
        plan = self.native.plan_of(model)
        batch = Batch(batch_id, self.kind, model, plan, lines, self.headers, asked, self.base_url)
        self.native.batches[batch_id] = batch
        return self._shown(batch, fresh=True)

    def _anthropic_problem(self, requests: Sequence[Json]) -> str | None:
        names = [request["custom_id"] for request in requests]
        if "anthropic-version" not in self.headers:
            return "anthropic-version: header is required"
        if not requests or len(set(names)) != len(names):
            return "requests: custom_id must be unique"
        bad = next((place for place, name in enumerate(names) if not _CUSTOM_ID.fullmatch(name)), None)
        return (
            None if bad is None else f"requests.{bad}.custom_id: String should match pattern '^[a-zA-Z0-9_-]{{1,64}}$'"
        )

    async def poll(self, batch: Batch) -> Reply:
        async with self.native.settling:
            await self.native.settle(batch)
        return self._shown(batch)

    def cancel(self, batch: Batch) -> Reply:
        if batch.state != "running":
            return _refusal(self.kind, 409 if self.kind == "openai" else 400, "it has ended")
        batch.cancelled = True
        return self._shown(batch)

    def list(self) -> Reply:
        asked = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
        batches = [batch for batch in reversed(self.native.batches.values()) if batch.kind == "openai"]
        names = [batch.id for batch in batches]
        start = names.index(asked["after"]) + 1 if "after" in asked else 0
        page = batches[start : start + int(asked.get("limit", 20))]
        shown = [json.loads(self._shown(batch).body) for batch in page]
        more = start + len(page) < len(batches)
        ends = {"first_id": page[0].id, "last_id": page[-1].id} if page else {}
        return _json({"object": "list", "data": shown, **ends, "has_more": more})

    def lines(self, batch: Batch) -> Reply:
        if batch.state != "ended":
            return _refusal("anthropic", 404, "no results yet")
        lines = [{"custom_id": one["custom_id"], "result": _anthropic_result(one)} for one in reversed(batch.results)]
        return Reply(200, batch.plan.extra + _dump_lines(lines), "application/x-jsonl")

    def _shown(self, batch: Batch, *, fresh: bool = False) -> Reply:
        return _json(_shown_anthropic(batch) if batch.kind == "anthropic" else self._shown_openai(batch, fresh=fresh))

    def _shown_openai(self, batch: Batch, *, fresh: bool) -> Json:
        if batch.state == "ended" and batch.output is None:
            lines = [_openai_line(one) for one in reversed(batch.results) if one["how"] != "canceled"]
            good = [line for line in lines if _went_well(line)]
            bad = [line for line in lines if not _went_well(line)]
            batch.output = self._keep(batch, good, batch.plan.extra)
            batch.failures = self._keep(batch, bad) if bad else None
        completed = sum(one.get("status") == 200 for one in batch.results)
        expired = any(one["how"] == "expired" for one in batch.results)
        ended = "cancelled" if batch.cancelled else "expired" if expired else "completed"
        running = "validating" if fresh else "cancelling" if batch.cancelled else "in_progress"
        return {
            "id": batch.id,
            "object": "batch",
            **batch.asked,
            "status": {"running": running, "ended": ended, "failed": "failed"}[batch.state],
            "errors": {"object": "list", "data": list(batch.plan.invalid)} if batch.state == "failed" else None,
            "output_file_id": batch.output,
            "error_file_id": batch.failures,
            "created_at": _CREATED,
            "expires_at": _CREATED + _DAY,
            "request_counts": {
                "total": 0 if fresh else len(batch.lines),
                "completed": completed,
                "failed": len(batch.results) - completed,
            },
        }

    def _keep(self, batch: Batch, lines: Sequence[Json], extra: bytes = b"") -> str:
        file_id = f"file-{secrets.token_hex(8)}"
        self.native.files[file_id] = File(batch.model, extra + _dump_lines(lines))
        return file_id


def _openai_problem(asked: Json, lines: Sequence[Json]) -> str | None:
    if asked.get("completion_window") != "24h" or asked.get("endpoint") != "/v1/chat/completions":
        return "completion_window or endpoint"
    if not lines:
        return "no such file, or nothing in it"
    if len({line["body"]["model"] for line in lines}) != 1:
        return "more than one model"
    if len({line["custom_id"] for line in lines}) != len(lines):
        return "custom_id is not unique"
    if any((line["method"], line["url"]) != ("POST", asked["endpoint"]) for line in lines):
        return "method or url"
    return "stream" if any(line["body"].get("stream") for line in lines) else None


def _openai_line(one: Json) -> Json:
    line: Json = {"id": f"batch_req_{secrets.token_hex(8)}", "custom_id": one["custom_id"], "response": None}
    match one["how"]:
        case "expired":
            return {**line, "error": {"code": "batch_expired", "message": _EXPIRED}}
        case "error":
            return {**line, "error": one["answer"]}
        case _:
            response = {"status_code": one["status"], "request_id": "upstream", "body": one["answer"]}
            return {**line, "response": response, "error": None}


def _went_well(line: Json) -> bool:
    return (line["response"] or {}).get("status_code") == 200


def _anthropic_result(one: Json) -> Json:
    match one["how"]:
        case "error":
            return {"type": "errored", "error": one["answer"]}
        case "answered" if one["status"] == 200:
            return {"type": "succeeded", "message": one["answer"]}
        case "answered":
            return {"type": "errored", "error": one["answer"]}
        case how:
            return {"type": how}


def _shown_anthropic(batch: Batch) -> Json:
    counts = dict.fromkeys(("processing", "succeeded", "errored", "canceled", "expired"), 0)
    if batch.state == "ended":
        for one in batch.results:
            counts[str(_anthropic_result(one)["type"])] += 1
    else:
        counts["processing"] = len(batch.lines)
    url = batch.plan.results_url or f"{batch.base_url}/messages/batches/{batch.id}/results"
    return {
        "id": batch.id,
        "type": "message_batch",
        "processing_status": "ended" if batch.state == "ended" else "canceling" if batch.cancelled else "in_progress",
        "request_counts": counts,
        "created_at": "2026-11-23T00:00:00Z",
        "expires_at": "2026-11-24T00:00:00Z",
        "ended_at": "2026-11-23T01:00:00Z" if batch.state == "ended" else None,
        "cancel_initiated_at": "2026-11-23T00:30:00Z" if batch.cancelled else None,
        "archived_at": None,
        "results_url": url if batch.state == "ended" else None,
    }


def _json_lines(content: bytes) -> list[Json]:
    return [json.loads(line) for line in content.splitlines() if line]


def _dump_lines(lines: Sequence[Json]) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def _json(body: Json) -> Reply:
    return Reply(200, json.dumps(body).encode())


def _refusal(kind: str, status: int, message: str) -> Reply:
    return Reply(status, json.dumps(formats.error(kind, status, message)).encode())
