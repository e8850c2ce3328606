"""Requests of every kind that the OpenAPI document allows, and many that it does not: every answer is as documented."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.core.result import Ok
from schemathesis.generation.hypothesis.builder import HypothesisTestConfig, HypothesisTestMode, create_test
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from api.app import create_app
from headrace.settings import Settings
from tests.e2e.jobs import chat
from tests.fakes.provider import Gate, Provider, stream
from tests.fakes.receiver import running_receiver
from tests.service import Service
from tests.waiting import until

_CHECKS = [status_code_conformance, content_type_conformance, response_schema_conformance]
_MODEL = "fake-fuzz"
# Its provider never answers, so that a job still runs when its cancellation arrives.
_HELD = "fake-fuzz-held"
_CANCEL = "/cancel"
# What webhooks tell of, by the name of a path's parameter.
_SUBJECTS = {"job_id": "jobs", "batch_id": "batches"}
# One in so many requests has the ids that schemathesis thinks up.
_STRANGE = 4

_SETTINGS = settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
# Their bodies have the fields of another operation's: there each field's bounds are looked at one by one.
_SAME = frozenset({"POST /api/v1/jobs", "POST /api/v1/agents/{agent_id}"})
# The statuses of good requests, where they are not 200 or 202.
_STATUSES = {"POST /api/v1/account": {403}, "GET /api/v1/accounts": {403}, "POST /api/v1/responses/compact": {404}}

schema = schemathesis.openapi.from_dict(create_app(Settings()).openapi())
OPERATIONS = {found.ok().label: found.ok() for found in schema.get_all_operations() if isinstance(found, Ok)}


class Things:
    """What paths name, by the names of their parameters. What is only looked at or changed is made once."""

    def __init__(self, client: httpx.Client, receiver: str) -> None:
        self._client = client
        self._receiver = receiver
        self._made: dict[str, str] = {}
        self._turns: defaultdict[str, Iterator[int]] = defaultdict(itertools.count)

    def fill(self, case: Any) -> None:
        """Put ids of what is there into most of the requests, and keys that no other has."""
        turn = next(self._turns[case.operation.label])
        if turn % _STRANGE == _STRANGE - 1:
            return
        if case.headers:
            case.headers.pop("Headrace-Account", None)  # of administrators alone
        if "Idempotency-Key" in (case.headers or {}):
            case.headers["Idempotency-Key"] = f"{case.operation.label} {turn}"
        cancelling = case.path.endswith(_CANCEL)
        ending = cancelling or case.method == "DELETE"
        subject = next((name for name in _SUBJECTS if name in case.path_parameters), "")
        *_, last = case.path_parameters or [None]
        for name in case.path_parameters:
            find = self._maker(name, subject, model=_HELD if cancelling else _MODEL)
            fresh = ending and name == last
            case.path_parameters[name] = find() if fresh else self._once(f"{subject} {name}", find)

    def _once(self, name: str, make: Callable[[], str]) -> str:
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    def _maker(self, name: str, subject: str, *, model: str = _MODEL) -> Callable[[], str]:
        makers: dict[str, Callable[[], str]] = {
            "job_id": lambda: self._job(model),
            "completion_id": lambda: self._ended("jobs", self._job(model)).replace("job_", "chatcmpl-"),
            "batch_id": lambda: self._batch(model),
            "delivery_id": lambda: self._delivery(subject),
            "file_id": self._file,
            "agent_id": lambda: self._post("/agents", {"name": "fuzz", "model": _MODEL}),
            "key_id": lambda: self._post("/api-keys", {"name": "fuzz"}),
            "conversation_id": lambda: self._post("/conversations", {}),
            "item_id": self._item,
            "response_id": lambda: self._post("/responses", {"model": model, "input": "Hello!", "background": True}),
            "model": lambda: "renamed",
        }
        return makers[name]

    def _post(self, path: str, body: dict[str, Any]) -> str:
        response = self._client.post(path, json=body)
        assert response.status_code in {200, 202}, response.text
        return str(response.json()["id"])

    def _job(self, model: str) -> str:
        return self._post("/jobs", {"request": chat(model, stream=True), "webhook": self._receiver})

    def _batch(self, model: str) -> str:
        lines = [{"custom_id": "a", "body": chat(model)}]
        return self._post("/batches", {"requests": lines, "webhook": self._receiver})

    def _item(self) -> str:
        conversation = self._once(" conversation_id", self._maker("conversation_id", ""))
        items = [{"role": "user", "content": "Hello!"}]
        response = self._client.post(f"/conversations/{conversation}/items", json={"items": items})
        return str(response.json()["last_id"])

    def _file(self) -> str:
        files = {"file": ("in.jsonl", b"some lines\n")}
        response = self._client.post("/files", data={"purpose": "batch"}, files=files)
        assert response.status_code == 200, response.text
        return str(response.json()["id"])

    def _ended(self, kind: str, thing: str) -> str:
        until(lambda: self._client.get(f"/{kind}/{thing}").json()["status"] == "completed", f"the end of {thing}")
        return thing

    def _delivery(self, subject: str) -> str:
        """Return a webhook's id, of the job or the batch that is `subject` of the same path."""
        kind = _SUBJECTS[subject]
        thing = self._once(f"{subject} {subject}", self._maker(subject, subject))
        path = f"/{kind}/{self._ended(kind, thing)}/webhook-deliveries"
        return str(self._client.get(path).json()["data"][0]["id"])


@pytest.fixture(scope="module")
def headers(service: Service) -> dict[str, str]:
    """The headers of a key whose account no other test uses."""
    scopes = ("keys:write", "usage:read", "webhooks:write", "metrics:read")
    key = service.create_key("fuzz", *(option for scope in scopes for option in ("--scope", scope)))
    return {"authorization": f"Bearer {key['key']}"}


@pytest.fixture(scope="module")
def things(service: Service, provider: Provider, headers: dict[str, str]) -> Iterator[Things]:
    gate = Gate()
    provider.always(_HELD, stream(gate))
    with (
        running_receiver() as receiver,
        httpx.Client(base_url=f"{service.base_url}/api/v1", headers=headers, timeout=30) as client,
    ):
        yield Things(client, receiver.url)
        gate.release()


def test_the_document_tells_all_that_is_read_and_answered() -> None:
    for label, operation in OPERATIONS.items():
        raw = operation.definition.raw
        named = {parameter["name"] for parameter in raw.get("parameters", [])}
        assert (label.startswith("POST ")) == ("requestBody" in raw) == ("Idempotency-Key" in named), label
        assert label.startswith("GET /api/") == ("Headrace-Account" in named), label
        assert label.endswith("/events") == ("Last-Event-ID" in named), label
        for status, answer in raw["responses"].items():
            if status.startswith("2"):
                assert answer["content"], label
                assert answer["content"].get("application/json") != {"schema": {}}, label


def _put_model(body: Any) -> None:
    """Ask for what a provider would be asked for."""
    if isinstance(body, dict):
        body.pop("timeout", None)
        if isinstance(body.get("model"), str):
            body["model"] = _MODEL
        _put_model(body.get("request"))


@pytest.mark.parametrize("label", OPERATIONS)
def test_every_answer_is_as_documented(label: str, service: Service, headers: dict[str, str], things: Things) -> None:
    statuses = set()

    def ask(case: Any) -> None:
        things.fill(case)
        if isinstance(case.query, dict):
            case.query.pop("wait", None)  # no test here waits
        _put_model(case.body)
        response = case.call(base_url=service.base_url, headers=headers, timeout=30)
        statuses.add(response.status_code)
        assert response.status_code != 500, response.text
        case.validate_response(response, checks=_CHECKS)

    _hypothesis_test(label, ask)()
    assert statuses & _STATUSES.get(label, {200, 202}), "none of the requests was any good"


def _hypothesis_test(label: str, ask: Callable[..., None]) -> Callable[[], None]:
    """Return what schemathesis's own `parametrize` makes of a test.

    That makes all of its tests when they are collected, which takes half a minute in each process, and gives them all
    one id, of which processes that share tests would run the first alone.
    """
    modes = [HypothesisTestMode.EXAMPLES, HypothesisTestMode.FUZZING]
    if label not in _SAME:
        modes.append(HypothesisTestMode.COVERAGE)
    config = HypothesisTestConfig(project=schema.config, modes=modes)
    test: Callable[[], None] = create_test(operation=OPERATIONS[label], test_func=_SETTINGS(ask), config=config)
    return test
