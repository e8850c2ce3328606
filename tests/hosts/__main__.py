"""`make hosts`: the service on several hosts, broken in some ways under load, then the checker's word.

Needs root and `ip netns`; says so and exits with 0 where it has neither. Ends with 1 and the directory of the logs if
anything was violated.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from psycopg.rows import DictRow

from tests.faults.chaos.__main__ import _clients
from tests.faults.chaos.checker import Checker, Verdict
from tests.faults.chaos.load import Load
from tests.faults.chaos.notes import Ask, Notes
from tests.faults.chaos.plan import PROVIDER_LINK
from tests.faults.chaos.rig import until_quiet
from tests.faults.chaos.told import ask_at_the_end
from tests.hosts.network import Network, NoNamespacesError, check
from tests.hosts.rig import HOSTS, HostsRig, running_rig
from tests.hosts.scenarios import Scenarios, Shown
from tests.service import BOOTSTRAP_KEY, PROVIDER_KEY, SECRET_KEY

_ACCOUNTS = ("ann", "ben", "cleo", "probe")
_PROBE = "probe"
_QUIET_SECONDS = 120.0
# Seconds after which a run is given up: twice what one takes on two busy cores.
_MOST_SECONDS = 600


class HostsChecker(Checker):
    """The chaos checker, where every provider is behind the network."""

    def _may_fail(self, job: DictRow, ask: Ask) -> bool:
        """Return whether a job may have failed for its provider's sake: if not, only a stream that had begun may."""
        begun = job["streamed"] and not job["background"] and job["first_token_at"] is not None
        cut = any(
            happening.fault.target == PROVIDER_LINK and happening.began < job["finished_at"].timestamp()
            for happening in self._rig.history
        )
        return ask.model.fails or (begun and cut)


def run(directory: Path, seed: int, clients: int) -> tuple[Sequence[Shown], Verdict]:
    """Run all scenarios on hosts of their own; return what they showed and what was wrong."""
    with Network(HOSTS).made() as network, running_rig(network, directory, seed) as rig:
        keys = {account: rig.create_key(account) for account in _ACCOUNTS}
        notes = Notes(frozenset({*keys.values(), PROVIDER_KEY, BOOTSTRAP_KEY, SECRET_KEY}))
        others = {account: key for account, key in keys.items() if account != _PROBE}
        load = Load(seed, rig.urls, others, rig.hooks.url, notes)
        scenarios = Scenarios(rig, Load(seed, rig.urls, {_PROBE: keys[_PROBE]}, rig.hooks.url, notes), _PROBE)
        with _clients(load, clients):
            scenarios.run()
        _settle(rig, notes)
        verdict = HostsChecker(rig, notes, ask_at_the_end(rig, keys, notes)).check()
        verdict.violations += scenarios.wrong
        return scenarios.shown, verdict


def _settle(rig: HostsRig, notes: Notes) -> None:
    rig.wait_until_whole()
    if not until_quiet(rig.database_url, lambda: rig.hooks.taken, _QUIET_SECONDS):
        notes.wrong.append(f"something is still to be done after {_QUIET_SECONDS:g} s")


def _print(shown: Sequence[Shown], verdict: Verdict) -> None:
    for scenario in shown:
        print(f"{scenario.name} ({scenario.seconds:.0f} s)")
        told = ", ".join(f"{count} x {status}" for status, count in scenario.told.most_common())
        for name, value in (("clients were told", told), *scenario.figures.items()):
            print(f"  {name:<38}{value}")
    print("what was checked")
    for name, count in verdict.counts.items():
        print(f"  {name:<38}{count}")
    print(f"violations: {len(verdict.violations)}", *verdict.violations[:50], sep="\n  ")


def main() -> int:
    """Run as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m tests.hosts", description="Break a service of several hosts.")
    parser.add_argument("--seed", type=int, default=None, help="of the load; by default another one every time")
    parser.add_argument("--clients", type=int, default=8, help="at a time")
    options = parser.parse_args()
    try:
        check()
    except NoNamespacesError as error:
        print(f"Skipped: {error}")
        return 0
    for number in (signal.SIGTERM, signal.SIGALRM):  # so that everything is removed then too
        signal.signal(number, lambda *_: sys.exit(f"Given up after {_MOST_SECONDS} s, or told to end."))
    signal.alarm(_MOST_SECONDS)
    seed = random.randrange(1_000_000) if options.seed is None else options.seed
    directory = Path(tempfile.mkdtemp(prefix="headrace-hosts-"))
    began = time.monotonic()
    try:
        shown, verdict = run(directory, seed, options.clients)
    except KeyboardInterrupt:
        shutil.rmtree(directory)
        return 1
    _print(shown, verdict)
    print(f"{time.monotonic() - began:.0f} s, seed {seed}")
    if verdict.violations:
        print(f"logs: {directory}", file=sys.stderr)
        return 1
    shutil.rmtree(directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
