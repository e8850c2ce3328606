"""`headrace batch` against the real service, as people and scripts use it."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.e2e.batches import get, jsonl, line, lines, reaches
from tests.fakes.provider import Behaviour, Exchange, Gate, Json, Provider, answer, status
from tests.service import BOOTSTRAP_KEY, ROOT, Command, Service, Stores, connect, running_service
from tests.waiting import eventually


def start(service: Service, directory: Path, *arguments: str, key: str = BOOTSTRAP_KEY) -> Command:
    """Start a `headrace batch` command."""
    environment = {"PYTHONPATH": str(ROOT), "HEADRACE_URL": service.base_url, "HEADRACE_API_KEY": key}
    return Command(["batch", *arguments], {**os.environ, **environment}, directory)


def run(service: Service, directory: Path, *arguments: str, code: int = 0, key: str = BOOTSTRAP_KEY) -> tuple[str, str]:
    """Run a `headrace batch` command to its end; returns its standard output and its standard error."""
    returned, printed, said = start(service, directory, *arguments, key=key).ended()
    assert returned == code, f"{returned}: {printed}{said}"
    return printed, said


def read(path: Path) -> list[Json]:
    return [json.loads(found) for found in path.read_text().splitlines()]


def held(gate: Gate) -> Behaviour:
    respond = answer("at last")

    async def behave(exchange: Exchange) -> None:
        await gate.pass_through()
        await respond(exchange)

    return behave


def test_a_file_is_run_and_its_output_saved(service: Service, tmp_path: Path, model: str) -> None:
    (tmp_path / "in.jsonl").write_bytes(jsonl(lines(model, 20)))
    printed, said = run(service, tmp_path, "run", "in.jsonl")
    assert printed == ""
    assert "Submitted 20 requests as batch_" in said
    assert "completed" in said
    assert "20 of 20 answered, 0 failed" in said
    assert "\x1b" not in said, "no progress bar is drawn without a terminal"
    assert [result["custom_id"] for result in read(tmp_path / "in.out.jsonl")] == [f"r{n}" for n in range(1, 21)]
    assert not (tmp_path / "in.errors.jsonl").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "in.out.jsonl"]


async def test_the_same_input_again_is_not_submitted_twice(
    service: Service, provider: Provider, tmp_path: Path, model: str
) -> None:
    (tmp_path / "in.jsonl").write_bytes(jsonl(lines(model, 3)))
    first = json.loads(run(service, tmp_path, "run", "in.jsonl", "--json")[0])
    again = json.loads(run(service, tmp_path, "run", "in.jsonl", "--json", "-o", "again.jsonl")[0])
    assert again["id"] == first["id"]
    assert (tmp_path / "again.jsonl").read_text() == (tmp_path / "in.out.jsonl").read_text()
    assert len(provider.calls_for(model)) == 3
    new = json.loads(run(service, tmp_path, "run", "in.jsonl", "--json", "--new")[0])
    assert new["id"] != first["id"]


async def test_lines_that_fail_are_told_by_the_exit_code(
    service: Service, provider: Provider, tmp_path: Path, model: str
) -> None:
    provider.always(f"{model}-bad", status(400, {"error": {"message": "No."}}))
    (tmp_path / "in.jsonl").write_bytes(jsonl([line("a", model), line("b", f"{model}-bad")]))
    printed, _ = run(service, tmp_path, "run", "in.jsonl", "--json", "--errors", "bad.jsonl", code=1)
    found = json.loads(printed)
    assert found["request_counts"] == {"total": 2, "completed": 1, "failed": 1}
    assert (found["output"], found["errors"]) == ("in.out.jsonl", "bad.jsonl")
    assert [result["custom_id"] for result in read(tmp_path / "bad.jsonl")] == ["b"]


async def test_an_invalid_input_is_refused_before_anything_is_sent(
    service: Service, client: httpx.AsyncClient, tmp_path: Path, model: str
) -> None:
    (tmp_path / "in.jsonl").write_bytes(jsonl([line("a", model)]) + b"nonsense\n")
    before = (await client.get("/files", params={"limit": 1})).json()
    printed, said = run(service, tmp_path, "run", "in.jsonl", code=2)
    assert printed == ""
    assert said.splitlines() == [
        "in.jsonl:2: This line is not parseable as valid JSON.",
        "Nothing was submitted.",
    ]
    assert (await client.get("/files", params={"limit": 1})).json() == before


async def test_what_only_the_server_knows_is_told_by_line_too(service: Service, tmp_path: Path, model: str) -> None:
    unknown = [line(f"b{number}", "nobodys-model") for number in range(11)]
    (tmp_path / "in.jsonl").write_bytes(jsonl([line("a", model), *unknown]))
    printed, said = run(service, tmp_path, "run", "in.jsonl", code=1)
    assert printed == ""
    at = said.index(" is not started: the input is not valid.")
    _, *problems, more = said[at:].splitlines()
    assert [problem.split(": ")[:2] for problem in problems] == [
        [f"in.jsonl:{number}", "body.model"] for number in range(2, 12)
    ]
    assert "The model 'nobodys-model' does not exist" in problems[0]
    assert more.startswith("1 more: headrace batch show batch_")
    assert "answered" not in said


async def test_a_table_that_is_refused_has_no_output(service: Service, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("text\na\n")
    options = ("--template", "{text}", "--model", "nobodys-model", "-o", "out.csv")
    _, said = run(service, tmp_path, "run", "in.csv", *options, code=1)
    assert "in.csv:2: body.model: The model 'nobodys-model' does not exist" in said
    assert "out.csv" not in said
    assert not (tmp_path / "out.csv").exists()
    told = json.loads(run(service, tmp_path, "run", "in.csv", *options, "--json", code=1)[0])
    assert [problem["param"] for problem in told["errors"]["data"]] == ["body.model"]


async def test_a_table_is_written_back_with_its_answers(service: Service, tmp_path: Path, model: str) -> None:
    (tmp_path / "in.csv").write_text('name,text\nx,"a {name}"\ny,b\n')
    run(service, tmp_path, "run", "in.csv", "--template", "Say {text}", "--model", model, "-o", "out.csv")
    assert (tmp_path / "out.csv").read_text().splitlines() == [
        "name,text,answer,error",
        "x,a {name},You said: Say a {name},",
        "y,b,You said: Say b,",
    ]


def test_a_column_named_as_ours_is_kept(service: Service, tmp_path: Path, model: str) -> None:
    (tmp_path / "in.csv").write_text("answer;text\ngold;a\n")
    run(service, tmp_path, "run", "in.csv", "--template", "{text}", "--model", model, "-o", "out.csv")
    assert (tmp_path / "out.csv").read_text() == "answer;text;answer_2;error\ngold;a;You said: a;\n"


def test_results_go_to_standard_output_and_to_devices(service: Service, tmp_path: Path, model: str) -> None:
    (tmp_path / "in.jsonl").write_bytes(jsonl(lines(model, 3)))
    printed, said = run(service, tmp_path, "run", "in.jsonl", "-o", "-")
    assert [json.loads(found)["custom_id"] for found in printed.splitlines()] == ["r1", "r2", "r3"]
    [batch_id] = {word.rstrip(".") for word in said.split() if word.startswith("batch_")}
    assert run(service, tmp_path, "results", batch_id, "-o", "/dev/stdout")[0] == printed
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


async def test_an_interrupt_leaves_the_batch_running_and_the_next_run_goes_on(
    service: Service, client: httpx.AsyncClient, provider: Provider, tmp_path: Path, model: str
) -> None:
    gate = Gate()
    provider.always(model, held(gate))
    (tmp_path / "in.jsonl").write_bytes(jsonl(lines(model, 2)))
    command = start(service, tmp_path, "run", "in.jsonl")
    await eventually(lambda: len(provider.calls_for(model)) == 2, "the calls")
    await eventually(lambda: "as batch_" in command.said(), "the command to know its batch")
    command.signal(signal.SIGINT)
    code, _, said = command.ended()
    assert code == 130, said
    [batch_id] = {word.rstrip(".") for word in said.split() if word.startswith("batch_")}
    assert f"headrace batch results {batch_id}" in said
    assert (await get(client, batch_id))["status"] == "in_progress"
    gate.release()
    _, said = run(service, tmp_path, "run", "in.jsonl")
    assert f"Going on with {batch_id}." in said
    assert len(read(tmp_path / "in.out.jsonl")) == 2
    assert len(provider.calls_for(model)) == 2


async def test_a_key_that_is_revoked_meanwhile_is_told_with_the_way_back(
    service: Service, client: httpx.AsyncClient, provider: Provider, tmp_path: Path, model: str
) -> None:
    gate = Gate()
    provider.always(model, held(gate))
    created = (await client.post("/api-keys", json={})).json()
    (tmp_path / "in.jsonl").write_bytes(jsonl(lines(model, 2)))
    command = start(service, tmp_path, "run", "in.jsonl", key=created["key"])
    await eventually(lambda: len(provider.calls_for(model)) == 2, "the calls")
    await eventually(lambda: "as batch_" in command.said(), "the command to know its batch")
    assert (await client.delete(f"/api-keys/{created['id']}")).status_code == 200
    code, printed, said = command.ended()
    assert (code, printed) == (1, ""), said
    [batch_id] = {word.rstrip(".") for word in said.split() if word.startswith("batch_")}
    assert "Error: The server answered 401: " in said
    assert f"{batch_id} keeps running." in said
    assert f"headrace batch results {batch_id} -o in.out.jsonl" in said
    assert (await get(client, batch_id))["status"] == "in_progress"
    gate.release()
    run(service, tmp_path, "run", "in.jsonl")
    assert len(read(tmp_path / "in.out.jsonl")) == 2


async def test_files_of_an_earlier_run_do_not_stay_beside_those_of_a_new_one(
    service: Service, client: httpx.AsyncClient, provider: Provider, tmp_path: Path, model: str
) -> None:
    provider.always(f"{model}-bad", status(400, {"error": {"message": "No."}}))
    good, bad = jsonl([line("a", model)]), jsonl([line("a", f"{model}-bad")])
    source, answers, errors = (tmp_path / name for name in ("in.jsonl", "in.out.jsonl", "in.errors.jsonl"))
    source.write_bytes(good)
    clean = json.loads(run(service, tmp_path, "run", "in.jsonl", "--json")[0])
    assert (answers.exists(), errors.exists()) == (True, False)
    source.write_bytes(bad)
    run(service, tmp_path, "run", "in.jsonl", code=1)
    assert (answers.exists(), errors.exists()) == (False, True)
    run(service, tmp_path, "results", clean["id"], "-o", "in.out.jsonl", "--errors", "in.errors.jsonl")
    assert (answers.exists(), errors.exists()) == (True, False)


async def test_batches_are_listed_shown_cancelled_and_fetched(
    service: Service, client: httpx.AsyncClient, provider: Provider, tmp_path: Path, model: str
) -> None:
    gate, slow = Gate(), f"{model}-slow"
    provider.always(slow, held(gate))
    (tmp_path / "in.jsonl").write_bytes(jsonl([line("a", model), line("b", slow)]))
    command = start(service, tmp_path, "run", "in.jsonl")

    async def one() -> str | None:
        for found in (await client.get("/batches", params={"limit": 1})).json()["data"]:
            if found["request_counts"] == {"total": 2, "completed": 1, "failed": 0}:
                return str(found["id"])
        return None

    batch_id = await eventually(one, "the first answer")
    command.signal(signal.SIGKILL)
    command.ended()
    assert json.loads(run(service, tmp_path, "list", "--json", "--limit", "1")[0])[0]["id"] == batch_id
    assert batch_id in run(service, tmp_path, "list")[0]
    assert json.loads(run(service, tmp_path, "show", batch_id, "--json")[0])["status"] == "in_progress"
    printed, said = run(service, tmp_path, "results", batch_id)
    assert [json.loads(found)["custom_id"] for found in printed.splitlines()] == ["a"]
    assert "1 answers and 0 errors" in said
    assert json.loads(run(service, tmp_path, "cancel", batch_id, "--json")[0])["status"] in {"cancelling", "cancelled"}
    await reaches(client, batch_id, "cancelled")
    gate.release()
    run(service, tmp_path, "results", batch_id, "-o", "out.jsonl", "--errors", "bad.jsonl")
    assert [result["custom_id"] for result in read(tmp_path / "out.jsonl")] == ["a"]
    assert [result["error"]["code"] for result in read(tmp_path / "bad.jsonl")] == ["batch_cancelled"]
    assert "cancelled" in run(service, tmp_path, "show", batch_id)[0]


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["run", "absent.jsonl"], 2, "does not exist"),
        (["run", "in.csv"], 2, "A table needs --template and --model."),
        (["run", "in.jsonl", "--template", "x"], 2, "are for tables"),
        (["run", "in.jsonl", "--metadata", "nothing"], 2, "KEY=VALUE"),
        (["run", "in.jsonl", "-o", "in.jsonl"], 2, "is the same file as FILE"),
        (["run", "in.jsonl", "-o", "none/out.jsonl"], 2, "No such file or directory"),
        (["run", "in.jsonl", "-o", "-", "--json"], 2, "--json prints to standard output"),
        (["run", "-"], 2, "name the results with --output and --errors"),
        (["list", "--url", "127.0.0.1:8700"], 2, "is not an address"),
        (["results", "batch_0", "-o", "none/out.jsonl"], 2, "No such file or directory"),
        (["run", "in.jsonl", "--window", "soon"], 1, "completion_window"),
        (["show", "batch_0"], 1, "No batch found"),
        (["cancel", "batch_0"], 1, "No batch found"),
        (["results", "batch_0"], 1, "No batch found"),
    ],
)
def test_wrong_use_is_told_in_a_line(
    service: Service, tmp_path: Path, model: str, arguments: list[str], code: int, told: str
) -> None:
    (tmp_path / "in.jsonl").write_bytes(jsonl(lines(model, 1)))
    (tmp_path / "in.csv").write_text("a\n1\n")
    _, said = run(service, tmp_path, *arguments, code=code)
    assert told in said
    assert "Traceback" not in said


def test_an_invalid_key_is_told(service: Service, tmp_path: Path, model: str) -> None:
    (tmp_path / "in.jsonl").write_bytes(jsonl(lines(model, 1)))
    _, said = run(service, tmp_path, "run", "in.jsonl", code=1, key="hr_unknown")
    assert "401" in said


@pytest.fixture
def own(tmp_path: Path, stores: Stores, config: str) -> Iterator[Service]:
    with running_service(tmp_path / "service", stores.fresh(), config) as service:
        yield service


async def test_an_api_that_is_started_anew_only_delays_it(
    own: Service, provider: Provider, tmp_path: Path, model: str
) -> None:
    gate = Gate()
    provider.always(model, held(gate))
    (tmp_path / "in.jsonl").write_bytes(jsonl(lines(model, 3)))
    command = start(own, tmp_path, "run", "in.jsonl", "--json")
    await eventually(lambda: len(provider.calls_for(model)) == 3, "the calls")
    own.processes["api"].kill()
    gate.release()
    own.launch("api")
    own.wait_until_ready()
    code, printed, said = command.ended()
    assert code == 0, said
    assert json.loads(printed)["request_counts"]["completed"] == 3
    async with connect(own, BOOTSTRAP_KEY) as client:
        assert len((await client.get("/batches")).json()["data"]) == 1
