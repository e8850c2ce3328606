"""The load that every system gets, and one measurement of one system under it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace

from bench.load import GRACE, Outcome, Plan
from bench.systems import Cpu, System

SETTLE = 0.5
"""Seconds of rest before and after a measurement, so that late work counts for the load that caused it."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """A kind of load. `seconds` limits it, as LiteLLM cannot reach `total` everywhere in a reasonable time."""

    name: str
    title: str
    model: str
    stream: bool
    concurrency: int
    total: int
    seconds: float
    warmup: int
    warmup_model: str
    spread: float = 0.0
    format: str = ""
    """The wire format of the provider behind Headrace. Only Headrace is measured with a format other than OpenAI's."""
    client: str = "chat"
    """The wire format of the client, or `jobs`. Only Headrace is measured with another one than chat."""

    @property
    def only_headrace(self) -> bool:
        """Whether only Headrace is measured."""
        return bool(self.format) or self.client != "chat"

    def plan(self, system: System, quick: bool) -> Plan:
        """Return the load on `system`. A quick one is a third as long, but has at least one request for each lane."""
        return Plan(
            port=system.port,
            path=system.path if self.client == "chat" else f"/api/v1/{self.client}",
            key=system.key,
            client=self.client,
            model=self.model,
            stream=self.stream,
            concurrency=self.concurrency,
            total=max(self.concurrency, self.total // 3) if quick else self.total,
            seconds=self.seconds / 3 if quick else self.seconds,
            warmup=self.warmup,
            warmup_model=self.warmup_model,
            headers=system.headers,
            spread=self.spread,
        )


SCENARIOS = (
    Scenario("plain-1", "plain requests, 1 at a time", "fake", False, 1, 300, 6, 30, "fake"),
    Scenario("plain-64", "plain requests, 64 at a time", "fake", False, 64, 3000, 9, 192, "fake"),
    Scenario("burst", "32 streams of 100 chunks at full speed", "fake-s100", True, 32, 320, 9, 32, "fake-s100"),
    Scenario("paced", "200 streams, 20 ms a chunk", "fake-s100-p20", True, 200, 400, 9, 32, "fake-s100", spread=1.0),
)
FORMATS = ("anthropic", "gemini")
FORMAT_SCENARIOS = tuple(
    replace(
        scenario,
        name=f"{scenario.name}-{name}",
        title=f"{scenario.title}, from {name.capitalize()}",
        model=scenario.model.replace("fake", name),
        warmup_model=scenario.warmup_model.replace("fake", name),
        format=name,
    )
    for scenario in SCENARIOS
    if scenario.stream
    for name in FORMATS
)
CLIENTS = ("responses",)
CLIENT_SCENARIOS = tuple(
    replace(scenario, name=f"{scenario.name}-{name}", title=f"{scenario.title}, as {name}", client=name)
    for scenario in SCENARIOS
    for name in CLIENTS
)
# Not one of the rows beside LiteLLM, which keeps no jobs.
DURABLE = Scenario(
    "durable", "durable jobs, 64 at a time", "fake-d20", False, 64, 2000, 30, 100, "fake-d20", client="jobs"
)
COMPARED = tuple(
    (
        scenario,
        *(other for other in (*FORMAT_SCENARIOS, *CLIENT_SCENARIOS) if other.name.startswith(f"{scenario.name}-")),
    )
    for scenario in SCENARIOS
)
"""Scenarios that differ by a wire format alone. They run one after the other, as their figures are compared."""
ALL_SCENARIOS = tuple(scenario for alike in COMPARED for scenario in alike)


@dataclass(frozen=True, slots=True)
class Measurement:
    """One measurement of one system under one scenario. CPU time is counted over `seconds`, which include `SETTLE`."""

    scenario: str
    system: str
    round: int
    seconds: float
    cpu: Cpu
    outcome: Outcome | None

    @property
    def own(self) -> float:
        """CPU seconds of the system's own processes."""
        return sum(self.cpu.own.values())

    @property
    def whole(self) -> float:
        """CPU seconds of the whole tree, stores included."""
        return self.own + sum(self.cpu.stores.values())

    def json(self) -> dict[str, object]:
        """Return the measurement as JSON's types."""
        return asdict(self)


def measure(scenario: Scenario, system: System, round_number: int, *, quick: bool) -> Measurement:
    """Put `system` under the load once; raise RuntimeError if the load generator itself fails."""
    plan = scenario.plan(system, quick)
    generator = "bench.durable" if scenario.client == "jobs" else "bench.load"
    load = subprocess.Popen(
        [sys.executable, "-m", generator],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
        start_new_session=True,
    )
    try:
        assert load.stdin is not None
        assert load.stdout is not None
        load.stdin.write(json.dumps(asdict(plan)) + "\n")
        _expect(load.stdout.readline(), "ready")
        time.sleep(SETTLE)
        before, start = system.cpu(), time.monotonic()
        load.stdin.write("go\n")
        _expect(load.stdout.readline(), "done")
        time.sleep(SETTLE)
        spent, seconds = system.cpu() - before, time.monotonic() - start
        outcome = Outcome(**json.loads(load.stdout.readline()))
        load.wait(GRACE)
    finally:
        if load.poll() is None:
            load.kill()
            load.wait()
    return Measurement(scenario.name, system.name, round_number, seconds, spent, outcome)


def measure_idle(system: System, round_number: int, seconds: float) -> Measurement:
    """Measure the CPU time of an idle `system` over `seconds`."""
    before, start = system.cpu(), time.monotonic()
    time.sleep(seconds)
    return Measurement("idle", system.name, round_number, time.monotonic() - start, system.cpu() - before, None)


def _expect(line: str, word: str) -> None:
    if line.strip() != word:
        raise RuntimeError(f"the load generator said {line!r} where {word!r} was due")
