"""The limits, the priority and the garbage collector of this process."""

from __future__ import annotations

import gc
import logging
import os
import resource
import time
from pathlib import Path

log = logging.getLogger(__name__)

_AUTOGROUP = Path("/proc/self/autogroup")
# Tries to change the session's niceness, and seconds between two.
_TRIES = 5
_AGAIN_SECONDS = 0.1


def raise_descriptor_limit(wanted: int) -> None:
    """Raise this process's limit of open files and connections to `wanted`, as far as the hard limit allows.

    Most systems start a process with a low limit, for programs that use `select`, and let the process raise it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    possible = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < possible:
        resource.setrlimit(resource.RLIMIT_NOFILE, (possible, hard))
    if possible < wanted:
        log.warning(
            "this process may have %d files and connections open, and may need %d: raise its hard limit (ulimit -Hn)",
            possible,
            wanted,
        )


def lower_priority(niceness: int) -> None:
    """Let other processes have the cores first.

    Where Linux shares the cores among sessions (`sched_autogroup_enabled`), the niceness of a process counts within its
    session alone. Each part of `headrace dev` leads a session of its own, so the session gets the niceness as well.
    """
    os.nice(niceness)
    if os.getsid(0) == os.getpid():
        for _ in range(_TRIES):
            try:
                _AUTOGROUP.write_text(str(niceness))
            except BlockingIOError:  # Linux lets users change a session every tenth of a second, all together
                time.sleep(_AGAIN_SECONDS)
            except OSError:  # another system, or a kernel without this
                return
            else:
                return


def rest_garbage_collector() -> None:
    """Exempt the objects that exist now from garbage collection, and collect less often.

    Reference counting frees the objects of jobs and deltas. The collector is for cycles in libraries: it looks at the
    youngest objects after 50,000 more were made than freed, at those that outlived one look after 150,000, and at all
    objects but the loaded modules after two million. Without this, walking through all modules again and again took a
    tenth of the time. With a full collection only every twenty million objects, a streaming worker grew by gigabytes.
    Garbage that outlived a look keeps all younger garbage that it refers to: with the second look only after half a
    million objects, an API grew by a hundred megabytes an hour.
    """
    gc.collect()
    gc.freeze()
    gc.collect()  # else the collector waits until the new objects are a quarter of the frozen ones
    gc.set_threshold(50_000, 2, 13)
