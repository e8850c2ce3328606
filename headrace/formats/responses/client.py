"""The Responses API toward clients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from headrace.formats.job_facts import JobFacts
from headrace.formats.responses.compaction import Compaction
from headrace.formats.responses.context import COMPACTS
from headrace.formats.responses.events import lines_of
from headrace.formats.responses.relay import Relay
from headrace.formats.responses.renderer import Renderer
from headrace.formats.responses.translate import translate

__all__ = ["KEEPS_LOG", "lines_of", "relay", "renderer", "translate"]

KEEPS_LOG = True


def renderer(
    job: JobFacts, document: Mapping[str, Any], *, log: Sequence[bytes] = (), from_chat: bool = False
) -> Renderer:
    """Return the renderer of an attempt's answer, which goes on behind the log of the job's earlier attempts."""
    return Renderer(job, document, log=log, from_chat=from_chat)


def relay(job: JobFacts, document: Mapping[str, Any], *, log: Sequence[bytes] = ()) -> Relay:
    """Return what passes on the answer of a provider that speaks the Responses API too."""
    return (Compaction if document.get(COMPACTS) else Relay)(job, document, log=log)
