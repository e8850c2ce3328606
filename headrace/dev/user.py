"""The system's user that an embedded store runs as."""

from __future__ import annotations

import os
import pwd
import stat
from pathlib import Path
from typing import Any

from headrace.dev.errors import EmbeddedStoreError

# The stores get none of our variables: a provider's key does not belong there, and PG* would change what they do.
_ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}


class StoreUser:
    """The user who starts the store; but `nobody` if that is root, as Postgres refuses to run as root."""

    def __init__(self) -> None:
        self._nobody = pwd.getpwnam("nobody") if os.geteuid() == 0 else None

    @property
    def differs(self) -> bool:
        """Whether the store runs as another user than the one who starts it."""
        return self._nobody is not None

    @property
    def child_arguments(self) -> dict[str, Any]:
        """The arguments of `subprocess` that run a child as this user, in an environment of its own."""
        arguments: dict[str, Any] = {"env": _ENVIRONMENT, "cwd": "/", "umask": 0o077}
        if self._nobody is not None:
            arguments |= {"user": self._nobody.pw_uid, "group": self._nobody.pw_gid, "extra_groups": []}
        return arguments

    def make_dir(self, path: Path) -> None:
        """Make a directory that belongs to this user and is closed to all others.

        Raises:
            EmbeddedStoreError: Another user owns it, or can open it.
        """
        path.mkdir(mode=0o700, exist_ok=True)
        if self._nobody is not None:
            os.chown(path, self._nobody.pw_uid, self._nobody.pw_gid, follow_symlinks=False)
        # In a shared temporary directory another user may have made it first.
        status = path.lstat()
        owner = os.geteuid() if self._nobody is None else self._nobody.pw_uid
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != owner or status.st_mode & 0o077:
            raise EmbeddedStoreError(f"{path} has to be closed to other users of this machine, and is not: remove it.")
