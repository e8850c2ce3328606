"""Compaction: a provider of the Responses API makes fewer items of a long input. Its answer is no response.

The stored request has `COMPACTS`, which never leaves Headrace. Only a provider of the format itself can compact, and it
answers whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from headrace.errors import UpstreamError
from headrace.formats.job_facts import JobFacts
from headrace.formats.responses.context import COMPACTS
from headrace.formats.responses.relay import Relay
from headrace.formats.responses.response import response_usage
from headrace.formats.responses.upstream import parse_response
from headrace.formats.responses.upstream.own_request import own_body
from headrace.ids import response_id

# Parameters of a response that the endpoint does not have.
_NOT_COMPACTED = frozenset({COMPACTS, "store", "stream", "stream_options"})


class Compaction(Relay):
    """Passes on the compacted items."""

    action = "/compact"

    def __init__(self, job: JobFacts, document: Mapping[str, Any], *, log: Sequence[bytes] = ()) -> None:
        """Take the client's request."""
        super().__init__(job, document, log=log)
        self._compacted: dict[str, Any] = {}

    def render_request(self, *, model: str, stream: bool) -> bytes:  # noqa: ARG002  (there is no stream)
        """Return the body of the request: the client's own."""
        body = own_body(self._document, model=model)
        return orjson.dumps({name: value for name, value in body.items() if name not in _NOT_COMPACTED})

    def parse_completion(self, body: bytes) -> dict[str, Any]:
        """Return a `chat.completion` without text, which has the usage.

        Raises:
            UpstreamError: The body is not a compaction.
        """
        self._compacted = parse_response(body)
        if not isinstance(self._compacted.get("output"), list):
            raise UpstreamError("The model's provider answered with something that is not a compaction.")
        choice = {"index": 0, "message": {"role": "assistant", "content": ""}, "finish_reason": "stop"}
        return {"choices": [choice], "usage": self._compacted.get("usage")}

    def end(self, completion: dict[str, Any]) -> tuple[list[bytes], dict[str, Any]]:
        """Return the compaction with the job's id and time."""
        said = self._compacted
        ours = {"id": response_id(self._job.id), "object": "response.compaction", "created_at": self._job.created}
        usage = response_usage(completion.get("usage"))
        return [], {**said, **ours, "usage": said.get("usage") if usage is None else usage}
