"""A receiver of webhooks that keeps each message, and refuses some of them the first time."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.fakes.receiver import Message, Receiver

_EVERY = 5
_REFUSALS = (500, 503, 429, 301)


@dataclass
class Hooks(Receiver):
    """The messages that came; `taken` are the ids that were answered with 200."""

    taken: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)

    def take(self, message: Message) -> int:
        """Keep a message and return the status to answer it with: every fifth is refused when it first comes."""
        self.messages.append(message)
        number = int(message.id[-6:], 16)
        if number % _EVERY == 0 and message.id not in self.refused:
            self.refused.add(message.id)
            return _REFUSALS[number % len(_REFUSALS)]
        self.taken.add(message.id)
        return 200
