"""Work on a large document beside the event loop, so that no other request waits for it.

One thread does all such work: Python runs one thread at a time anyway, and memory then holds one large document in
several forms, not many. Each function that it runs has to consist of steps that take milliseconds, as a single call
into C keeps the event loop waiting.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

LARGE_BYTES = 64 * 1024
"""Bytes of JSON above which a document is large: a smaller one takes a few milliseconds at worst."""

_P = ParamSpec("_P")
_T = TypeVar("_T")


@functools.cache
def _thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="large")


async def offloaded(size: int, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Call a function that works on a document of `size` bytes: here, or beside the event loop if that is large."""
    if size <= LARGE_BYTES:
        return function(*args, **kwargs)
    call = functools.partial(contextvars.copy_context().run, functools.partial(function, *args, **kwargs))
    return await asyncio.get_running_loop().run_in_executor(_thread(), call)
