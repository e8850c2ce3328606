"""The stores' programs, from their Python wheels."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import shutil
import subprocess
from pathlib import Path

from headrace.dev.errors import EmbeddedStoreError
from headrace.dev.user import StoreUser


def find_program(path: str, *, distribution: str, variable: str, user: StoreUser, copies: Path) -> Path:
    """Return a program of a wheel, copied below `copies` if the store's user cannot run it in place.

    `variable` is the setting by which an operator names a server of their own instead.

    Raises:
        EmbeddedStoreError: The wheel is not installed, or is for another machine.
    """
    package = distribution.replace("-", "_")
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise EmbeddedStoreError(f"{distribution} is not installed: install it, or set {variable}.")
    installed = Path(spec.origin).parent
    if program_version(installed / path, user):
        return installed / path
    if user.differs:
        copy = copies / f"programs-{importlib.metadata.version(distribution)}"
        if not copy.exists():
            _copy(installed, copy)
        if program_version(copy / package / path, user):
            return copy / package / path
    raise EmbeddedStoreError(
        f"The programs of {distribution} do not run on this machine ({platform.system()} {platform.machine()}): set "
        f"{variable} to a server of yours."
    )


def program_version(program: Path, user: StoreUser) -> str:
    """Return the last word of a program's `--version`, or an empty string if the user cannot run the program."""
    try:
        result = subprocess.run(
            [program, "--version"],
            check=True,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            **user.child_arguments,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return str(result.stdout.split()[-1])


def _copy(package: Path, to: Path) -> None:
    """Copy a package and its shared libraries. The copy gets its name when it is whole."""
    unfinished = to.with_suffix(".new")
    shutil.rmtree(unfinished, ignore_errors=True)
    unused = shutil.ignore_patterns("include", "*.a", "__pycache__")
    # Wheels keep the shared libraries of a package in a second directory beside it, and look for them there.
    for directory in (package, package.with_name(f"{package.name}.libs")):
        if directory.exists():
            shutil.copytree(directory, unfinished / directory.name, ignore=unused, symlinks=True)
    unfinished.rename(to)
