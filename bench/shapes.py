"""What gateways publish about themselves, measured for several of them in one run: `python -m bench --shapes`.

* Added latency: p50, p95 and p99 of a request minus those of the direct call, by requests at a time, in front of an
  upstream that answers after 20 ms.
* Requests a second at saturation, and what one core would serve.
* Durable jobs, and lines of batches, a second and core: only Headrace keeps them, so it stands alone there.

Every system gets the same load from the same client in front of the same upstream. The systems take turns, and each
round has another order, so that a slow minute of the machine does not hit one alone.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import psutil

from bench.batches import Run, run_batch
from bench.portkey import Portkey
from bench.scenarios import DURABLE, Measurement, Scenario, measure
from bench.systems import Direct, Headrace, LiteLLM, System, Upstream, start_order, turns

DEFAULT_ROUNDS = 4
SYSTEMS: tuple[type[System], ...] = (Direct, LiteLLM, Portkey, Headrace)

_MODEL = "fake-d20"
_AT_A_TIME = (1, 4, 16, 64)
_BATCH_LINES = 8_000


def _plain(name: str, concurrency: int, seconds: float, total: int = 100_000) -> Scenario:
    warmup = max(20, 2 * concurrency)
    return Scenario(name, f"{concurrency} at a time", _MODEL, False, concurrency, total, seconds, warmup, _MODEL)


ADDED = tuple(_plain(f"added-{number}", number, 4 if number == 1 else 2.5) for number in _AT_A_TIME)
SATURATION = _plain("saturation", 256, 4)

# Processes import, and just-in-time compilers compile, under load: before anything is measured.
_WARMING = _plain("warming", 64, 3)
_WARM_LINES = 200


@dataclass(slots=True)
class Shapes:
    """The measurements of one run."""

    rounds: int
    quick: bool
    load: float
    """Processes that ran or waited for a core, on average over the minute before the run."""
    versions: dict[str, str] = field(default_factory=dict)
    measurements: list[Measurement] = field(default_factory=list)
    batches: list[Run] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    """Why systems could not be installed or started, by their names."""
    failures: list[str] = field(default_factory=list)
    """The measurements that failed, and those with a wrong, broken or missing answer."""

    def of(self, scenario: Scenario, system: str) -> dict[int, Measurement]:
        """Return the measurements of a scenario and a system by round."""
        return {m.round: m for m in self.measurements if (m.scenario, m.system) == (scenario.name, system)}

    def add(self, measurement: Measurement, title: str) -> None:
        """Take a measurement, and look at its answers."""
        self.measurements.append(measurement)
        outcome = measurement.outcome
        if outcome is not None and outcome.correct < outcome.asked:
            self.failures.append(f"{title}: {outcome.correct} of {outcome.asked} right: {'; '.join(outcome.errors)}")


def measure_shapes(rounds: int | None, *, quick: bool) -> Shapes:
    """Measure in rounds every system that this machine can install; quick measurements are a third as long.

    Each round starts the systems anew, as `start_order` says why.
    """
    found = Shapes(rounds or (2 if quick else DEFAULT_ROUNDS), quick, psutil.getloadavg()[0])
    with Upstream() as upstream:
        for number in range(found.rounds):
            with ExitStack() as stack:
                systems = _started(stack, upstream, found, number)
                for system in systems:
                    _warm(system, found)
                _measure_round(systems, found, number)
    return found


def _warm(system: System, found: Shapes) -> None:
    with _measuring(f"warming, {system.name}", system, found.failures):
        measure(_WARMING, system, 0, quick=found.quick)
        if isinstance(system, Headrace):
            run_batch(system, _WARM_LINES, _MODEL)


def _measure_round(systems: Sequence[System], found: Shapes, number: int) -> None:
    title = f"round {number + 1} of {found.rounds}"
    for scenario in (*ADDED, SATURATION, DURABLE):
        for system in systems:
            if _serves(system, scenario):
                name = f"{title}, {scenario.title}, {system.name}"
                with _measuring(name, system, found.failures):
                    found.add(measure(scenario, system, number, quick=found.quick), name)
    for system in systems:
        if isinstance(system, Headrace):
            name = f"{title}, a batch, {system.name}"
            with _measuring(name, system, found.failures):
                run = run_batch(system, _BATCH_LINES // (3 if found.quick else 1), _MODEL)
                found.batches.append(run)
                if run.answered != run.lines:
                    found.failures.append(f"{name}: {run.answered} of {run.lines} lines right")


def _serves(system: System, scenario: Scenario) -> bool:
    """Return whether a system is in a scenario's class; the direct call has no CPU time, so no saturation either."""
    if scenario.only_headrace:
        return isinstance(system, Headrace)
    return scenario is not SATURATION or not isinstance(system, Direct)


def _started(stack: ExitStack, upstream: Upstream, found: Shapes, number: int) -> Sequence[System]:
    """Start the systems of a round, and return them in the order of their turns."""
    systems: dict[str, System] = {}
    for kind in start_order([kind for kind in SYSTEMS if kind.name not in found.missing], number):
        _say(f"starting {kind.name}")
        try:
            system = systems[kind.name] = stack.enter_context(kind(upstream))
        except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
            if kind is Headrace:
                raise
            found.missing[kind.name] = str(error)
            _say(f"without {kind.name}: {error}")
            continue
        found.versions[kind.name] = system.version
    return [systems[kind.name] for kind in turns(SYSTEMS, number) if kind.name in systems]


@contextmanager
def _measuring(title: str, system: System, failures: list[str]) -> Iterator[None]:
    # One failed measurement does not discard the others.
    _say(title)
    try:
        yield
    except (OSError, RuntimeError) as error:
        failures.append(f"{title}: {type(error).__name__}")
        _say(f"{error}\n{system.tree.log_tail() if system.tree else ''}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
