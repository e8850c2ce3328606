"""The errors of embedded stores."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from headrace.settings import SettingError


class EmbeddedStoreError(Exception):
    """An embedded store could not start, or does not run; the message says why and what to do."""


@contextmanager
def data_dir_errors(path: Path) -> Iterator[None]:
    """Turn an operating system's error at or below `path` into one about HEADRACE_DATA_DIR.

    Raises:
        SettingError: A file or directory cannot be made, read or written.
    """
    try:
        yield
    except OSError as error:
        raise SettingError(f"HEADRACE_DATA_DIR: {error.filename or path}: {error.strerror or error}.") from error
