"""The one form in which a request travels through the API, whichever format its client speaks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import orjson

from headrace.agents.formats import resolve
from headrace.agents.queries import AgentVersion
from headrace.formats.chat.request import ChatRequest, JobSubmission, check_request
from headrace.formats.chat.support import Format
from headrace.formats.json_document import parse_json
from headrace.formats.responses.client import translate
from headrace.formats.responses.context import with_ids, without_context
from headrace.formats.responses.request import ResponseRequest, check_response_request
from headrace.formats.translation import Translation


@dataclass(slots=True)
class Asked:
    """A client's request: the bytes that its job stores, its checked model, and the chat request that it means.

    `terms` has only the first messages of a long request (see `check_request`); `document` has all of them.
    """

    format: Format
    body: bytes
    terms: ChatRequest | ResponseRequest
    translation: Translation
    expanded: dict[str, Any] | None = None
    """The request with its context, if its format has one: see `headrace.formats.responses.context`."""

    @property
    def document(self) -> dict[str, Any]:
        """The document of the chat request."""
        return self.translation.chat

    @property
    def conversation_id(self) -> str | None:
        """The conversation that the request continues."""
        asked = None if self.expanded is None else self.expanded.get("conversation")
        return asked["id"] if isinstance(asked, dict) else asked

    def stored(self, job_id: str) -> str:
        """Return the request as its job stores it."""
        return (self.body if self.expanded is None else orjson.dumps(with_ids(self.expanded, job_id))).decode()

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """Return the chat request that a body holds.

        Raises:
            InvalidRequestError: The body is not a valid chat request; the error names the parameter.
        """
        document = parse_json(body)
        return cls("chat", body, check_request(ChatRequest, document), Translation(document))

    @classmethod
    def of_response(cls, body: bytes, expanded: dict[str, Any], terms: ResponseRequest) -> Self:
        """Return the request for a response that a body holds, whose checked document is `expanded` by its context.

        Raises:
            InvalidRequestError: The request cannot be understood; the error names the parameter.
        """
        return cls("responses", body, terms, translate(expanded), expanded)

    @classmethod
    def parse_submission(cls, body: bytes) -> tuple[JobSubmission, Self]:
        """Return a job submission, and the chat request in its field `request`. Raises as `parse` does."""
        document = parse_json(body)
        submission = check_request(JobSubmission, document, within="request")
        asked = document["request"]
        return submission, cls("chat", orjson.dumps(asked), submission.request, Translation(asked))

    def to_model_of(self, agent: AgentVersion) -> Self:
        """Return a request to an agent as the request to the agent's model.

        Raises as `parse` does: the request and the agent may each be valid, and their combination invalid.
        """
        definition = orjson.loads(agent.definition)
        if self.expanded is not None:
            expanded = resolve(definition, self.expanded, self.format)
            terms = check_response_request(without_context(expanded))
            return type(self)(self.format, self.body, terms, translate(expanded), expanded)
        document = resolve(definition, self.document, self.format)
        return type(self)("chat", orjson.dumps(document), check_request(ChatRequest, document), Translation(document))
