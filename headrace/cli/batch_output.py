"""The files of results: a file that is replaced once all is written, a device, a pipe, or standard output (`-`).

A file without results is not there, so one of an earlier batch is removed.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import click

from headrace.cli.batch_client import BatchClient

OUTPUT_PATH = click.Path(dir_okay=False, allow_dash=True, path_type=Path)
"""The type of an option that names a file of results."""

STANDARD_OUTPUT = 1
"""The file descriptor of standard output."""
_DESCRIPTORS = {"-": STANDARD_OUTPUT, "/dev/stdout": STANDARD_OUTPUT, "/dev/stderr": 2}
_DESCRIPTOR = re.compile(r"/(?:dev|proc/self)/fd/([0-9]{1,9})")


def descriptor_of(path: Path) -> int | None:
    """Return the open descriptor that a path names, or None for an ordinary path."""
    if found := _DESCRIPTOR.fullmatch(str(path)):
        return int(found[1])
    return _DESCRIPTORS.get(str(path))


def check_outputs(outputs: Mapping[str, Path], source: Path | None = None) -> None:
    """Check, before anything is sent, that each output can be written and is neither `source` nor another output.

    The keys of `outputs` are the options, for messages.

    Raises:
        UsageError: An output cannot be written, or writing it would destroy `source` or another output.
    """
    taken = {} if source is None else {"FILE": source}
    for option, path in outputs.items():
        try:
            _check_writable(path)
            for other, its in taken.items():
                if _is_same(path, its):
                    raise click.UsageError(f"{option}: '{path}' is the same file as {other}.")
        except OSError as error:
            raise click.UsageError(f"{option}: '{path}': {error.strerror}") from error
        taken[option] = path


def save(client: BatchClient, batch: Mapping[str, Any], file: str, path: Path) -> str | None:
    """Download a `file` of an ended batch to a path, and return the path; None if the batch has no such file.

    A file that an earlier batch left there is then removed, or it would pass for a file of this batch. It stays if this
    batch failed: none of its requests ran.

    Raises:
        OSError: The file cannot be written or removed; `filename` is the path.
    """
    file_id = batch[file]
    if file_id is None:
        if batch["status"] != "failed":
            _remove(path)
        return None
    with written(path) as target:
        client.download(file_id, target)
    return str(path)


@contextmanager
def written(path: Path) -> Iterator[IO[bytes]]:
    """Yield a file to write to. A regular file at `path` is replaced when all is written.

    A link is followed. A device, a pipe and an open descriptor are written to directly.

    Raises:
        OSError: The file cannot be written; `filename` is the path.
    """
    try:
        with _opened(path) as file:
            yield file
    except OSError as error:
        if error.errno != errno.EPIPE:
            error.filename = str(path)
        raise


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    descriptor, status = descriptor_of(path), _status(path)
    if descriptor == STANDARD_OUTPUT:
        sys.stdout.flush()
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
    elif descriptor is not None:
        with os.fdopen(os.dup(descriptor), "wb") as file:
            yield file
    elif status is not None and not stat.S_ISREG(status.st_mode):
        with path.open("wb") as file:
            yield file
    else:
        with _replacing(Path(os.path.realpath(path)), status) as file:
            yield file


@contextmanager
def _replacing(path: Path, status: os.stat_result | None) -> Iterator[IO[bytes]]:
    # Each run has a name of its own, so that two runs never write to one file.
    temporary = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with temporary.open("xb") as file:
            if status is not None:
                os.fchmod(file.fileno(), stat.S_IMODE(status.st_mode))
            yield file
        try:
            temporary.replace(path)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            shutil.copyfile(temporary, path)  # a file that is a mount of its own cannot be replaced
    finally:
        temporary.unlink(missing_ok=True)


def _remove(path: Path) -> None:
    """Remove the regular file at a path, if any. A link is followed; a device, a pipe and an open descriptor stay."""
    try:
        status = _status(path)
        if descriptor_of(path) is None and status is not None and stat.S_ISREG(status.st_mode):
            _unlink(Path(os.path.realpath(path)))
    except OSError as error:
        error.filename = str(path)
        raise


def _unlink(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        os.truncate(path, 0)  # a file that is a mount of its own cannot be removed


def _status(path: Path) -> os.stat_result | None:
    """Return the status of the file at a path, or None if no file exists there."""
    descriptor = descriptor_of(path)
    try:
        return path.stat() if descriptor is None else os.fstat(descriptor)
    except FileNotFoundError:
        return None


def _check_writable(path: Path) -> None:
    status = _status(path)
    if descriptor_of(path) is not None:
        return
    if status is not None:
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        if not stat.S_ISREG(status.st_mode):
            return
    target = Path(os.path.realpath(path))
    directory = target.parent
    if not stat.S_ISDIR(directory.stat().st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    if len(os.fsencode(target.name)) > os.pathconf(directory, "PC_NAME_MAX"):
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    if not os.access(directory, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, f"the folder is not writable: {directory}")


def _is_same(one: Path, other: Path) -> bool:
    """Return whether two paths lead to one regular file. A device such as `/dev/null` may be shared."""
    first, second = _status(one), _status(other)
    if first is None or second is None:
        return first is second and os.path.realpath(one) == os.path.realpath(other)
    return stat.S_ISREG(first.st_mode) and os.path.samestat(first, second)
