"""The one form in which a request travels through the API."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import orjson

from headrace.agents.persona import resolve
from headrace.agents.queries import AgentVersion
from headrace.formats.chat.request import ChatRequest, JobSubmission, check_request
from headrace.formats.json_document import parse_json


@dataclass(frozen=True, slots=True)
class Asked:
    """A chat request: the bytes that its job stores, the JSON document in them, and the checked model.

    `chat` has only the first messages of a long request (see `check_request`); `document` has all of them.
    """

    body: bytes
    document: dict[str, Any]
    chat: ChatRequest

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """Return the chat request that a body holds.

        Raises:
            InvalidRequestError: The body is not a valid chat request; the error names the parameter.
        """
        document = parse_json(body)
        return cls(body, document, check_request(ChatRequest, document))

    @classmethod
    def parse_submission(cls, body: bytes) -> tuple[JobSubmission, Self]:
        """Return a job submission, and the chat request in its field `request`. Raises as `parse` does."""
        document = parse_json(body)
        submission = check_request(JobSubmission, document, within="request")
        return submission, cls(orjson.dumps(document["request"]), document["request"], submission.request)

    def to_model_of(self, agent: AgentVersion) -> Self:
        """Return a request to an agent as the request to the agent's model.

        Raises as `parse` does: the request and the agent may each be valid, and their combination invalid.
        """
        document = resolve(orjson.loads(agent.definition), self.document)
        return type(self)(orjson.dumps(document), document, check_request(ChatRequest, document))
