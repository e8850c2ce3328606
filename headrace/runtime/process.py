"""The limits and the garbage collector of this process."""

from __future__ import annotations

import gc
import logging
import resource

log = logging.getLogger(__name__)


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
