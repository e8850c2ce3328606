"""The live wire: events of jobs over Redis pub/sub. It may lose any message; Postgres has every event.

A worker publishes frames, those of many jobs in one command. A job's frames go to the job's own channel, for its
subscribers, and to the channel of its origin, the API process whose client waits for the job, together with the frames
of that process's other jobs. That client's answer then costs no subscription, and one message serves many streams.

A frame is a header line, `job attempt first_seq kind count`, and `count` lines of JSON. Kinds:

* `started`, `retrying`: no lines
* `delta`: chunks, numbered from `first_seq` on
* `completed`, `failed`, `cancelled`, `expired`: two lines, the response or the error, and its charge; no lines if they
  are large
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

CANCEL_CHANNEL = "headrace:cancel"
WORK_CHANNEL = "headrace:work"
"""Where the scheduler that leads hears that a batch or a webhook waits for it."""
CALLS_BEGIN = b"calls begin"
"""What a worker that was quiet tells the workers of its machine with its first call."""

# Bytes of an end above which readers read it from Postgres: pub/sub buffers count against Redis's memory.
LARGEST_END = 256 * 1024
PAST_ALL = 2**31 - 1
"""Larger than any sequence number."""


def calls_channel(machine: str, prefix: str = "") -> str:
    """Return the channel for `CALLS_BEGIN` of a machine, in the deployment whose names begin with the prefix."""
    return f"{prefix}headrace:calls:{machine}"


def job_channel(job_id: str, prefix: str = "") -> str:
    """Return the channel of a job's subscribers, in the deployment whose names begin with the prefix."""
    return f"{prefix}headrace:job:{job_id}"


class Frame(NamedTuple):
    """One event of a job, or several deltas in a row."""

    job_id: str
    attempt: int
    first_seq: int
    kind: str
    lines: Sequence[bytes]

    def pack(self) -> bytes:
        """Return the frame as it travels."""
        head = _head(self.job_id, self.attempt, self.first_seq, self.kind, len(self.lines))
        return head + b"\n".join((*self.lines, b""))


def pack_deltas(job_id: str, attempt: int, first_seq: int, count: int, body: bytes) -> bytes:
    """Return a frame of deltas as it travels. `body` has their `count` lines, each with its line end."""
    return _head(job_id, attempt, first_seq, "delta", count) + body


def _head(job_id: str, attempt: int, first_seq: int, kind: str, count: int) -> bytes:
    return f"{job_id} {attempt} {first_seq} {kind} {count}\n".encode()


def unpack(message: bytes) -> Iterable[Frame]:
    """Yield the frames of a message.

    Raises:
        ValueError: The message is not a sequence of frames.
    """
    lines = message.split(b"\n")
    at, end = 0, len(lines) - 1
    while at < end:
        job_id, attempt, first_seq, kind, count = lines[at].split(b" ")
        at += 1
        upto = at + int(count)
        yield Frame(job_id.decode(), int(attempt), int(first_seq), kind.decode(), lines[at:upto])
        at = upto


def without_lines(frame: Frame) -> Frame:
    """Return a frame without its lines: its readers read them from Postgres."""
    return Frame(frame.job_id, frame.attempt, frame.first_seq, frame.kind, ())
