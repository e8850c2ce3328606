"""`make chaos`: some minutes of load and faults, then the checker's word.

Ends with 0 if nothing was violated, else with 1 and the directory of the logs. The same seed is the same faults again.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults.chaos.checker import Checker, Restart, Verdict
from tests.faults.chaos.load import Load
from tests.faults.chaos.notes import Notes
from tests.faults.chaos.plan import LONG_MINUTES, Fault, plan
from tests.faults.chaos.rig import DRAIN_SECONDS, Happening, running_rig, until_quiet
from tests.faults.chaos.told import ask_at_the_end
from tests.service import BOOTSTRAP_KEY, PROVIDER_KEY, SECRET_KEY

_ACCOUNTS = ("ann", "ben", "cleo")
# Seconds after the last fault in which clients get what they were promised, and all that was accepted ends.
_QUIET_SECONDS = 200.0
# Seconds after which processes have released the memory that they needed for their load.
_SETTLE_SECONDS = 10.0


@dataclass(slots=True)
class Outcome:
    """A run, from its seed to its verdict."""

    seed: int
    minutes: float
    faults: Counter[str]
    history: Sequence[Happening]
    notes: Notes
    verdict: Verdict
    memory: Mapping[str, str]
    """Of each process."""
    quiet_seconds: float
    """How long it took, after the last fault, until nothing was left to do."""

    @property
    def cut_off(self) -> list[str]:
        """The requests that were accepted, or whose answer had begun, when their connection broke."""
        return self.verdict.cut_off

    def document(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        began = self.history[0].began - self.history[0].fault.at if self.history else 0
        restarts = self.verdict.restarts
        return {
            "seed": self.seed,
            "minutes": self.minutes,
            "quiet_seconds": round(self.quiet_seconds, 1),
            "faults": dict(sorted(self.faults.items())),
            "statuses": dict(self.notes.statuses.most_common()),
            "counts": dict(self.verdict.counts),
            "restarts": _times(restarts),
            "restarts_with_nothing_else_broken": _times([restart for restart in restarts if restart.alone]),
            "memory": self.memory,
            "violations": self.verdict.violations,
            "history": [
                {
                    "fault": f"{happening.fault.kind} {happening.fault.target}",
                    "began": round(happening.began - began, 1),
                    "ended": round(happening.ended - began, 1),
                }
                for happening in self.history
            ],
        }

    def text(self) -> str:
        """Return it for people."""
        document = self.document()
        lines = [f"seed {self.seed}, {self.minutes:g} minutes, {self.quiet_seconds:.0f} s until all was done", ""]
        faults: dict[str, dict[str, int]] = {}
        for name, count in document["faults"].items():
            kind, _, target = name.rpartition(" ")
            faults.setdefault(kind, {})[target] = count
        lines += ["faults", *_table((kind, _list(targets)) for kind, targets in faults.items())]
        lines += ["", "what clients were told", *_table(document["statuses"].items())]
        lines += ["", "what was checked", *_table(document["counts"].items())]
        lines += ["", "memory", *_table(self.memory.items())]
        lines += ["", "from a worker's death to the next start of each of its jobs"]
        for title, name in (("all", "restarts"), ("nothing else broken", "restarts_with_nothing_else_broken")):
            lines += _table([(title, ", ".join(f"{key} {value}" for key, value in document[name].items()))])
        lines += ["", f"violations: {len(self.verdict.violations)}", *self.verdict.violations[:50]]
        return "\n".join(lines)


def _times(restarts: Sequence[Restart]) -> dict[str, Any]:
    seconds = [restart.seconds for restart in restarts]
    return {
        "jobs": len(seconds),
        "median_seconds": round(statistics.median(seconds), 1) if seconds else None,
        "worst_seconds": round(max(seconds), 1) if seconds else None,
    }


def _table(rows: Iterable[tuple[str, object]]) -> list[str]:
    return [f"  {name:<40}{value}" for name, value in rows]


def _list(targets: Mapping[str, int]) -> str:
    return ", ".join(target if count == 1 else f"{target} x {count}" for target, count in targets.items())


def run(
    seed: int,
    minutes: float,
    clients: int,
    directory: Path,
    *,
    faults: Sequence[Fault] | None = None,
    direct: bool = False,
    drain_seconds: float = DRAIN_SECONDS,
) -> Outcome:
    """Run it all, from the main thread, with logs in a directory.

    By default the seed decides on `faults`; `direct` has clients ask the APIs themselves, over no link.
    """
    with running_rig(directory, seed, forked=minutes < LONG_MINUTES, drain_seconds=drain_seconds) as rig:
        keys = {account: rig.create_key(account) for account in _ACCOUNTS}
        notes = Notes(frozenset({*keys.values(), PROVIDER_KEY, BOOTSTRAP_KEY, SECRET_KEY}))
        load = Load(seed, rig.urls if direct else rig.linked_urls, keys, rig.hooks.url, notes)
        with _clients(load, clients):
            rig.run(plan(seed, minutes) if faults is None else faults, minutes * 60)
            mended_at = time.monotonic()
        rig.wait_until_whole()
        left = max(_QUIET_SECONDS - (time.monotonic() - mended_at), 0)
        if not until_quiet(rig.database_url, lambda: rig.hooks.taken, left):
            notes.wrong.append(f"something is still to be done after {_QUIET_SECONDS:g} s")
        quiet_seconds = time.monotonic() - mended_at
        if minutes >= LONG_MINUTES:
            time.sleep(_SETTLE_SECONDS)
        rig.settle()
        verdict = Checker(rig, notes, ask_at_the_end(rig, keys, notes)).check()
        return Outcome(seed, minutes, rig.done, rig.history, notes, verdict, rig.memory.table(), quiet_seconds)


@contextlib.contextmanager
def _clients(load: Load, count: int) -> Iterator[None]:
    """Have clients ask meanwhile, and wait afterwards until each has its answer."""
    stop = threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(load.run(count, stop)), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(_QUIET_SECONDS)
        if thread.is_alive():
            load.notes.wrong.append("clients still wait for what they were promised")


def main() -> int:
    """Run as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.chaos", description="Break everything under load.")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=None, help="of the faults; by default another one every time")
    parser.add_argument("--clients", type=int, default=24, help="at a time")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    seed = random.randrange(1_000_000) if options.seed is None else options.seed
    print(f"seed {seed}", file=sys.stderr, flush=True)
    directory = Path(tempfile.mkdtemp(prefix="headrace-chaos-"))
    outcome = run(seed, options.minutes, options.clients, directory)
    print(json.dumps(outcome.document(), indent=2) if options.json else outcome.text())
    if outcome.verdict.violations:
        print(f"logs: {directory}\nseed {seed}", file=sys.stderr)
        return 1
    shutil.rmtree(directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
