"""Keep words that hide a sentence's subject out of code, docs and commit subjects. `make check` runs it.

A text names who acts and uses the field's usual word, so that a reader need not guess.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# Each with what to write instead.
WORDS = {
    "whoever": "name them: the client, the reader, the worker",
    "nobody": "name who does not: 'no client waits'",
    "somebody": "name who does: 'a client waits'",
    "anybody": "name them: 'any key of the account'",
    "told of": "say what happens: 'the API notifies …', 'the log names …'",
    "is none": "name what is missing: 'no lease exists'",
    "is away": "'is unavailable', 'is disconnected'",
    "so long as": "'while', 'as long as'",
    "so long ago": "say how long: 'that many days ago'",
    "what is not": "name the thing: 'rows without a lease'",
    "who watches": "'watching clients', 'subscribers'",
    "let go of": "'release', 'close', 'disconnect'",
}
# A phrase may go over the end of a line. In quotation marks or backquotes it is a name, as the system user `nobody` is.
_PHRASES = "|".join(phrase.replace(" ", r"[\s#>]+") for phrase in WORDS)
PATTERN = re.compile(rf"([`'\"])\w+\1|\b({_PHRASES})\b", re.IGNORECASE)

# Names in Python are checked as phrases: each `_` between words counts as a space. The text keeps its length, so the
# numbers of its lines hold.
_JOINT = re.compile(r"(?<=[a-zA-Z0-9])_(?=[a-zA-Z0-9])")

SUFFIXES = {".css", ".html", ".js", ".lua", ".md", ".py", ".toml", ".yaml", ".yml"}
NAMES = {"Dockerfile", "Makefile"}
HIDDEN = {".ci", ".devcontainer", ".github"}  # the hidden folders that are ours
MADE = {"build", "dist", "node_modules"}
EXAMPLES = {".ci/words.py", "tests/unit/test_words.py"}

# Commits from before this check are left as they are.
SUBJECTS_SINCE = "2026-11-28T07:45:00Z"


def problems(text: str, place: str) -> list[str]:
    """Return a line for each such phrase of a text."""
    found = []
    text = _JOINT.sub(" ", text) if place.endswith(".py") else text
    for match in PATTERN.finditer(text):
        phrase = re.sub(r"[\s#>]+", " ", match[2] or "")
        code = "None" in phrase or (phrase == "is none" and place.endswith(".html"))  # of Python, or of a template
        if phrase and not code:
            line = text.count("\n", 0, match.start()) + 1
            found.append(f"{place}:{line}: '{phrase}': {WORDS[phrase.lower()]}")
    return found


def texts() -> Iterator[Path]:
    """Yield the files that people read."""
    for folder, folders, files in os.walk(ROOT):
        folders[:] = sorted(name for name in folders if name in HIDDEN or not (name in MADE or name.startswith(".")))
        paths = [Path(folder, name) for name in sorted(files)]
        yield from (path for path in paths if path.suffix in SUFFIXES or path.name in NAMES)


def subjects() -> Iterator[tuple[str, str]]:
    """Yield the commits since this check with their subjects. A checkout without a repository has none."""
    if not (ROOT / ".git").exists():
        return
    command = ["git", "log", f"--since={SUBJECTS_SINCE}", "--format=%h %s"]
    log = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    for line in log.stdout.splitlines():
        commit, _, subject = line.partition(" ")
        yield f"commit {commit}", subject


def main(arguments: list[str]) -> int:
    """Check everything. `--message FILE` checks a commit message instead."""
    if arguments[:1] == ["--message"]:
        found = problems(Path(arguments[1]).read_text().partition("\n")[0], "subject")
    else:
        names = {str(path.relative_to(ROOT)) for path in texts()} - EXAMPLES
        found = [line for name in sorted(names) for line in problems((ROOT / name).read_text(), name)]
        found += [line for commit, subject in subjects() for line in problems(subject, commit)]
    for line in found:
        print(line)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
