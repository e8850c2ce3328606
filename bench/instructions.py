"""Instructions that the pure parts of the hot path take: `python -m bench.instructions`.

Unlike CPU time, they are the same on a busy machine, so a change of half a percent shows in one run. They leave out the
kernel, and how long an instruction takes. Valgrind's callgrind counts them; it must be installed.

`bench.pure` runs each operation in three forks of one process, with few, few and many repetitions. The first difference
is what the parent did between two forks; the second one, less the first, is the repetitions alone: the start of
Python, imports and preparation cancel out. With the same hash seed a second run counts the same to a few instructions,
as Valgrind gives a program the same addresses each time. A change of the code moves both, so everything runs with two
seeds, and the table has the spread: a smaller difference of two commits may be no more than that.

`--against REVISION` counts the same operations of another commit.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from bench.checkout import Checkout, build, current
from bench.pure import PARTS

FEW, MANY = 10, 110
_COLLECTED = re.compile(r"^==(\d+)== Collected : (\d+)", re.MULTILINE)
_PURE = Path(__file__).with_name("pure.py")
_SEEDS = ("0", "1")

Counts = dict[str, list[float]]
"""Instructions of one operation, by its name, with each seed. An operation that a commit lacks has no entry."""


def plan(names: list[str]) -> str:
    """Return what `bench.pure` reads: three lines for each operation."""
    return "".join(f"{name}\t{times}\n" for name in names for times in (FEW, FEW, MANY))


def per_operation(names: list[str], forks: list[int], collected: Mapping[int, int]) -> dict[str, float]:
    """Return the instructions of one operation from those that the forks of a plan collected, by process id."""
    found = {}
    for number, name in enumerate(names):
        first, second, third = forks[3 * number : 3 * number + 3]
        if first:
            between = collected[second] - collected[first]
            found[name] = (collected[third] - collected[second] - between) / (MANY - FEW)
    return found


def count(checkout: Checkout, names: list[str]) -> Counts:
    """Count the operations of a commit in its own venv.

    Raises:
        RuntimeError: Valgrind failed.
    """
    counts: Counts = {}
    for seed in _SEEDS:
        print(f"{checkout.name}: hash seed {seed}, about a minute", file=sys.stderr, flush=True)
        done = subprocess.run(
            ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", checkout.python, "-P", str(_PURE)],
            input=plan(names),
            # The environment lies in the program's memory and moves it, so this is all of it.
            env={"PATH": os.environ["PATH"], "PYTHONHASHSEED": seed},
            cwd=checkout.root,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"valgrind ended with code {done.returncode}:\n{done.stderr[-2000:]}")
        collected = {int(process): int(instructions) for process, instructions in _COLLECTED.findall(done.stderr)}
        for name, value in per_operation(names, [int(line) for line in done.stdout.split()], collected).items():
            counts.setdefault(name, []).append(value)
    return counts


def table(names: list[str], new: Counts, old: Counts | None) -> list[str]:
    """Return the table in Markdown: means of the runs, the wider spread of both commits, and their ratio."""
    lines = ["| | instructions | spread |", "| --- | ---: | ---: |"]
    if old is not None:
        lines = ["| | old | new | new / old | spread |", "| --- | ---: | ---: | ---: | ---: |"]
    for name in names:
        sides = [new.get(name)] if old is None else [old.get(name), new.get(name)]
        cells = ["n/a" if runs is None else f"{_mean(runs):,.0f}" for runs in sides]
        if old is not None:
            cells.append(f"{_mean(new[name]) / _mean(old[name]):.3f}" if name in new and name in old else "")
        spread = max((_spread(runs) for runs in sides if runs is not None), default=0.0)
        lines.append(f"| {name} | {' | '.join(cells)} | {spread:.2%} |")
    return lines


def above(most: float, new: Counts, old: Counts) -> list[str]:
    """Return the operations whose fewest instructions are more than `most` times the most of the old commit."""
    return [name for name in new if name in old and min(new[name]) > most * max(old[name])]


def _mean(runs: list[float]) -> float:
    return sum(runs) / len(runs)


def _spread(runs: list[float]) -> float:
    return (max(runs) - min(runs)) / _mean(runs)


def main() -> int:
    """Count and print; 1 if an operation takes more than `--most` allows, 2 without Valgrind."""
    parser = argparse.ArgumentParser(prog="python -m bench.instructions", description="Count instructions.")
    parser.add_argument("--part", action="append", choices=list(PARTS), help="count this operation (repeatable)")
    parser.add_argument("--against", metavar="REVISION", help="count those of this tag, branch or commit too")
    parser.add_argument("--most", type=float, metavar="RATIO", help="with --against: fail above this ratio")
    options = parser.parse_args()
    if options.most is not None and not options.against:
        parser.error("--most is an option of --against")
    if shutil.which("valgrind") is None:
        print("Valgrind is not installed, so no instructions can be counted.", file=sys.stderr)
        return 2
    names = options.part or list(PARTS)
    try:
        old = count(build(options.against), names) if options.against else None
        new = count(current(), names)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    print("\n".join(table(names, new, old)))
    slower = above(options.most, new, old) if options.most is not None and old is not None else []
    for name in slower:
        print(f"{name}: more than {options.most:g} times the instructions", file=sys.stderr)
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
