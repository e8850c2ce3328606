"""What a format needs to know of the job whose answer it renders."""

from __future__ import annotations

from typing import Protocol


class JobFacts(Protocol):
    """The facts of a job that its client's objects and events contain."""

    @property
    def id(self) -> str:
        """The job's id, from which the ids of its objects are made."""

    @property
    def created(self) -> int:
        """When the job was accepted, in Unix seconds."""

    @property
    def background(self) -> bool:
        """Whether the job runs on without its client."""
