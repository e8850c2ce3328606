"""The machine that a process runs on: what identifies it, and how often its tasks wait for a core."""

from __future__ import annotations

from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_PRESSURE = Path("/proc/pressure/cpu")


def machine_id() -> str:
    """Return an id that all processes of a machine share, in containers too; an empty string beyond Linux."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:  # not Linux
        return ""


def stalled_seconds() -> float | None:
    """Return for how long, since the machine started, some task has waited for a core; None if the system does not say.

    Linux calls this the pressure on the CPU, and has it in microseconds: `some avg10=… avg60=… avg300=… total=…`.
    """
    try:
        some = _PRESSURE.read_text().partition("\n")[0]
        return int(some.rpartition("total=")[2]) / 1e6
    except (OSError, ValueError):  # not Linux, or a kernel without this
        return None
