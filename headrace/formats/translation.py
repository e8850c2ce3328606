"""What a client's request means as a chat request: the form in which routing, limits and providers' formats take it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_NONE: Mapping[str, str] = {}
_MESSAGE = re.compile(r"messages\[(\d+)\]")


@dataclass(slots=True)
class Translation:
    """A client's request as a chat request, and what a chat request cannot say of it.

    A provider of the client's own format gets the request as it came, so `own` and `dropped` concern the others.
    """

    chat: dict[str, Any]
    """The document of the chat request."""
    own: Mapping[str, str] = field(default_factory=lambda: _NONE)
    """Paths of what only a provider of the client's own format can honour, each with the type of the value there."""
    dropped: Sequence[str] = ()
    """Paths of parameters that the chat request leaves out, because the answer is as good without them."""
    names: Mapping[str, str] = field(default_factory=lambda: _NONE)
    """The client's paths of parameters that the chat request has under other names."""
    messages: Sequence[str] = ()
    """The client's path of each message of the chat request, if they differ."""
    within: Mapping[str, str] = field(default_factory=lambda: _NONE)
    """The client's names, in the paths of messages, of what the chat request has under other names."""

    def path(self, param: str) -> str:
        """Return the path in the client's request of a parameter of the chat request."""
        match = _MESSAGE.match(param)
        if match is not None and int(match[1]) < len(self.messages):
            rest = param[match.end() :]
            for hub, client in self.within.items():
                rest = rest.replace(hub, client)
            return self.messages[int(match[1])] + rest
        end = next((at for at, char in enumerate(param) if char in ".["), len(param))
        name = self.names.get(param[:end])
        return param if name is None else name + param[end:]
