"""`python -m bench`: Headrace beside LiteLLM's proxy, and beside no proxy at all, on this machine.

Everything runs on loopback: a fake upstream, one system at a time under load, and the load generator, each in processes
of its own. Each round starts the systems anew, and they take turns within it. The order in which they start and the
order of their turns alternate, so that neither a slow minute of the machine nor a place in the order hits one system
alone. A full run takes about ten minutes and writes `bench/results.md`. A quick or partial run only prints.

With `--shapes` it measures what gateways publish about themselves, beside LiteLLM's proxy and Portkey's gateway, and
writes the tables of docs/explanation/performance.md: see `bench.shapes`.

With `--against REVISION` it measures Headrace beside an earlier commit of itself instead: see `bench.against`.
"""

from __future__ import annotations

import argparse
import json
import resource
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path

from bench.against import DEFAULT_ROUNDS as AGAINST_ROUNDS
from bench.against import QUICK_ROUNDS, compare
from bench.batches import Batches, measure_batches
from bench.report import Report
from bench.scenarios import ALL_SCENARIOS, COMPARED, DURABLE, Measurement, measure, measure_idle
from bench.shapes import DEFAULT_ROUNDS as SHAPES_ROUNDS
from bench.shapes import measure_shapes
from bench.shapes_page import PAGE, tables, write
from bench.subscribers import Subscribers, measure_subscribers
from bench.systems import SYSTEMS, Headrace, System, Upstream, start_order, turns

RESULTS = Path(__file__).resolve().parent / "results.md"
_SCENARIOS = (*(scenario.name for scenario in ALL_SCENARIOS), "idle", "subscribers", "batches")
_ROWS = (*_SCENARIOS, DURABLE.name)
_IDLE_SECONDS = 5
_ROUNDS = 4


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure Headrace beside LiteLLM's proxy.")
    systems = [system.name for system in SYSTEMS]
    parser.add_argument("--only", action="append", choices=systems, help="measure this system (repeatable)")
    parser.add_argument("--scenario", action="append", choices=_ROWS, help="measure this scenario (repeatable)")
    parser.add_argument(
        "--rounds",
        type=int,
        help=f"rounds ({_ROUNDS}, with --quick 1; with --against {AGAINST_ROUNDS}, with --shapes {SHAPES_ROUNDS}, "
        f"with --quick {QUICK_ROUNDS})",
    )
    parser.add_argument("--quick", action="store_true", help="short rounds, and few")
    parser.add_argument("--shapes", action="store_true", help="measure what gateways publish, for several of them")
    parser.add_argument("--against", metavar="REVISION", help="compare with this tag, branch or commit of Headrace")
    parser.add_argument(
        "--most", type=float, metavar="RATIO", help="with --against: fail if more CPU than this ratio is certain"
    )
    parser.add_argument("--subscribers", type=int, default=2000, metavar="N", help="idle subscribers, up to 10000")
    parser.add_argument("--json", action="store_true", help="print JSON, raw measurements included, for the table")
    options = parser.parse_args()
    if options.against and (options.only or "subscribers" in (options.scenario or ())):
        parser.error("--against measures Headrace alone, and no subscribers")
    if DURABLE.name in (options.scenario or ()) and not options.against:
        parser.error("durable jobs are a row of --against, and a part of --shapes")
    if options.shapes and (options.against or options.only or options.scenario):
        parser.error("--shapes measures all of its shapes, for every system that can be installed")
    if options.most is not None and not options.against:
        parser.error("--most is an option of --against")
    return options


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _stop(signum: int, _frame: object) -> None:
    sys.exit(128 + signum)


def run(options: argparse.Namespace) -> Report:
    """Start the selected systems, measure them in rounds, and stop them, also after an error."""
    kinds = [kind for kind in SYSTEMS if not options.only or kind.name in options.only]
    scenarios = options.scenario or list(_SCENARIOS)
    rounds: int = options.rounds or (1 if options.quick else _ROUNDS)
    measurements: list[Measurement] = []
    once: tuple[Subscribers | None, Batches | None] = (None, None)
    broken: list[str] = []
    versions: dict[str, str] = {}

    @contextmanager
    def measuring(title: str, system: System) -> Iterator[None]:
        # One failed measurement does not discard the others.
        _say(f"{title}, {system.name}")
        try:
            yield
        except (OSError, RuntimeError) as error:
            broken.append(f"{title}, {system.name}: {type(error).__name__}")
            _say(f"{broken[-1]}: {error}\n{system.tree.log_tail() if system.tree else ''}")

    def measure_round(systems: Sequence[System], number: int) -> None:
        title = f"round {number + 1} of {rounds}"
        for scenario in (scenario for alike in COMPARED for scenario in turns(alike, number)):
            for system in systems if scenario.name in scenarios else ():
                if scenario.only_headrace and not isinstance(system, Headrace):
                    continue
                with measuring(f"{title}, {scenario.title}", system):
                    measurements.append(measure(scenario, system, number, quick=options.quick))
        for system in systems:
            if "idle" in scenarios and system.tree is not None:
                with measuring(f"{title}, nothing to do", system):
                    measurements.append(measure_idle(system, number, _IDLE_SECONDS))

    def measure_once(headrace: Headrace) -> tuple[Subscribers | None, Batches | None]:
        subscribers, batches = None, None
        if "subscribers" in scenarios:
            with measuring(f"{options.subscribers} subscribers", headrace):
                subscribers = measure_subscribers(headrace, options.subscribers)
        if "batches" in scenarios:
            with measuring("batches", headrace):
                batches = measure_batches(headrace, quick=options.quick)
        return subscribers, batches

    with Upstream() as upstream:
        for number in range(rounds):
            with ExitStack() as stack:
                systems: dict[str, System] = {}
                for kind in start_order(kinds, number):
                    _say(f"starting {kind.name}")
                    systems[kind.name] = stack.enter_context(kind(upstream))
                versions = {kind.name: systems[kind.name].version for kind in kinds}
                measure_round([systems[kind.name] for kind in turns(kinds, number)], number)
                headrace = systems.get(Headrace.name)
                if number == rounds - 1 and isinstance(headrace, Headrace):
                    once = measure_once(headrace)
    return Report(versions, measurements, *once, broken, rounds, options.quick)


def main() -> int:
    """Measure, print, and write the page of a full run; 1 if a system did not start or an answer was wrong."""
    options = _options()
    # A signal unwinds the stack, which stops the systems.
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, _stop)
    # Ten thousand subscribers need as many descriptors, here and in the API, which inherits the limit.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        if options.against:
            return _compare(options)
        if options.shapes:
            return _shapes(options)
        report = run(options)
    except RuntimeError as error:
        _say(str(error))
        return 1
    page = report.markdown()
    print(json.dumps(report.json(), indent=2) if options.json else page, end="" if not options.json else "\n")
    if options.quick or options.only or options.scenario:
        _say(f"not a full run: {RESULTS.name} is left as it was")
    else:
        RESULTS.write_text(page)
    for line in (*report.failures, *report.errors):
        _say(line)
    return 1 if report.failures else 0


def _compare(options: argparse.Namespace) -> int:
    found = compare(
        options.against, rows=options.scenario, rounds=options.rounds, quick=options.quick, most=options.most
    )
    print(json.dumps(found.json(), indent=2, ensure_ascii=False) if options.json else found.markdown())
    return 1 if found.failures or found.slower else 0


def _shapes(options: argparse.Namespace) -> int:
    found = measure_shapes(options.rounds, quick=options.quick)
    print(json.dumps(asdict(found), indent=2) if options.json else tables(found))
    if options.quick or found.missing or found.failures:
        _say(f"not a full run: {PAGE.name} is left as it was")
    else:
        write(found)
    for failure in found.failures:
        _say(failure)
    return 1 if found.failures else 0


if __name__ == "__main__":
    sys.exit(main())
