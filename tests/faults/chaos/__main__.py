"""`make chaos`: some minutes of load and faults, then the checker's word.

Ends with 0 if nothing was violated, else with 1 and the directory of the logs. The same seed is the same faults again.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults.chaos.checker import Checker, Verdict
from tests.faults.chaos.load import Load, Notes, script
from tests.faults.chaos.plan import Fault, plan
from tests.faults.chaos.rig import Rig, running_rig, until_quiet

_ACCOUNTS = ("ann", "ben", "cleo")
_QUIET_SECONDS = 150.0


@dataclass(slots=True)
class Outcome:
    """A run, from its seed to its verdict."""

    seed: int
    minutes: float
    faults: Counter[str]
    notes: Notes
    verdict: Verdict

    def document(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        restarts = self.verdict.restarts
        return {
            "seed": self.seed,
            "minutes": self.minutes,
            "faults": dict(sorted(self.faults.items())),
            "statuses": dict(self.notes.statuses.most_common()),
            "counts": dict(self.verdict.counts),
            "restarts": {
                "jobs": len(restarts),
                "median_seconds": round(statistics.median(restarts), 1) if restarts else None,
                "worst_seconds": round(max(restarts), 1) if restarts else None,
            },
            "violations": self.verdict.violations,
        }

    def text(self) -> str:
        """Return it for people."""
        document = self.document()
        lines = [f"seed {self.seed}, {self.minutes:g} minutes"]
        for title in ("faults", "statuses", "counts", "restarts"):
            lines += ["", title, *(f"{value!s:>10}  {name}" for name, value in document[title].items())]
        lines += ["", f"violations: {len(self.verdict.violations)}", *self.verdict.violations[:50]]
        return "\n".join(lines)


def run(seed: int, minutes: float, clients: int, directory: Path) -> Outcome:
    """Run it all, from the main thread, with logs in a directory."""
    with running_rig(directory) as rig:
        script(rig.provider, seed)
        keys = {account: str(rig.service.create_key(account)["key"]) for account in _ACCOUNTS}
        first, second = rig.ports
        load = Load(seed, (f"http://127.0.0.1:{first}", f"http://127.0.0.1:{second}"), keys)
        loop = asyncio.new_event_loop()
        stop = asyncio.Event()
        thread = threading.Thread(target=lambda: loop.run_until_complete(load.run(clients, stop)), daemon=True)
        thread.start()
        _do(rig, plan(seed, minutes), minutes * 60)
        rig.heal()
        loop.call_soon_threadsafe(stop.set)
        thread.join(_QUIET_SECONDS)
        if thread.is_alive():
            load.notes.wrong.append("clients still wait for what they were promised")
        until_quiet(rig.database_url, _QUIET_SECONDS)
        verified = json.loads(rig.service.run("usage", "verify", "--json"))
        if verified.get("differences"):
            load.notes.wrong.append(f"headrace usage verify: {verified}")
        verdict = Checker(rig.database_url, load.notes, rig.provider.calls, rig.kills).check()
        return Outcome(seed, minutes, rig.done, load.notes, verdict)


def _do(rig: Rig, faults: list[Fault], seconds: float) -> None:
    """Begin and end each fault at its time; what is broken already is left alone until then."""
    began = time.monotonic()
    ends: list[tuple[float, Fault]] = []
    while True:
        now = time.monotonic() - began
        for end, fault in [found for found in ends if found[0] <= now]:
            ends.remove((end, fault))
            rig.end(fault)
        if faults and faults[0].at <= now:
            fault = faults.pop(0)
            if all(fault.target != other.target for _, other in ends):
                rig.begin(fault)
                ends.append((time.monotonic() - began + fault.seconds, fault))
        if now >= seconds and not ends:
            return
        time.sleep(0.05)


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
