"""An agent's definition, and how a chat request to the agent becomes one to its model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import to_json

from headrace.errors import invalid_parameter
from headrace.formats.chat.messages import Message
from headrace.formats.chat.request import ChatRequest, Metadata, ModelName
from headrace.formats.chat.validation import invalid_request
from headrace.ids import AGENT_PREFIX

LARGEST_AGENT = 1024 * 1024
"""Bytes of a definition, as JSON."""

# Parameters that belong to a call, for which an agent has no defaults.
_NOT_DEFAULTS = frozenset({
    "model", "messages", "stream", "stream_options", "background", "webhook", "timeout", "metadata", "store", "user",
    "safety_identifier",
})  # fmt: skip
# Two forms of one parameter. A call that sets either form replaces the agent's default of the other.
_OTHER_FORM = {
    "max_tokens": "max_completion_tokens",
    "tools": "functions",
    "tool_choice": "function_call",
}
_OTHER_FORM |= {form: other for other, form in _OTHER_FORM.items()}
# Defaults that refer to another default, and are dropped where a call sets that one.
_ABOUT = {"tool_choice": "tools", "parallel_tool_calls": "tools", "function_call": "functions"}
# Characters of a text in a definition, at most.
_LONGEST_TEXT = 262_144

_Text = Annotated[str, Field(max_length=_LONGEST_TEXT)]


class AgentDefinition(BaseModel):
    """An agent as its client describes it."""

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        allow_inf_nan=False,
        json_schema_extra={
            "examples": [
                {
                    "name": "Miller",
                    "bio": ["You have run a water mill for forty years.", "You speak plainly."],
                    "system_prompt": "Answer in at most three sentences.",
                    "model": "demo",
                    "parameters": {"temperature": 0.3, "max_completion_tokens": 300},
                    "messages": [
                        {"role": "user", "content": "What is a headrace?"},
                        {"role": "assistant", "content": "The channel that brings the water to my wheel."},
                    ],
                }
            ]
        },
    )

    name: Annotated[str, Field(min_length=1, max_length=256)]
    description: Annotated[str, Field(max_length=4096)] | None = Field(
        default=None, description="For you; the model never sees it"
    )
    bio: _Text | Annotated[list[_Text], Field(max_length=256, fail_fast=True)] | None = Field(
        default=None, description="Who it is: a text, or a list of sentences"
    )
    system_prompt: _Text | None = Field(default=None, description="Its instructions, the same for every client")
    model: ModelName = Field(description="A model of the catalogue, not an agent")
    parameters: dict[str, Any] | None = Field(
        default=None, description="Defaults of a chat completion's parameters; a call's own parameters replace them"
    )
    messages: Annotated[list[Message], Field(max_length=256, fail_fast=True)] | None = Field(
        default=None, description="An example conversation, placed before the caller's messages"
    )
    metadata: Metadata | None = None

    def check(self) -> None:
        """Check the rules that the fields' types cannot express.

        Raises:
            InvalidRequestError: The model is an agent, or a chat completion does not accept a default.
        """
        if self.model.startswith(AGENT_PREFIX):
            raise invalid_parameter("model", "an agent cannot be the model of an agent", code=None)
        given = self.parameters or {}
        for name in given:
            if name in _NOT_DEFAULTS:
                raise invalid_parameter(f"parameters.{name}", "it belongs to a call")
        request = {"model": self.model, "messages": [{"role": "user", "content": ""}], **given}
        try:
            ChatRequest.model_validate_json(to_json(request))
        except ValidationError as error:
            problem = invalid_request(error, request)
            raise problem.about(f"parameters.{problem.param}") from None


def resolve_chat(agent: Mapping[str, Any], request: Mapping[str, Any]) -> dict[str, Any]:
    """Return a chat request to an agent as one to its model.

    `agent` is an AgentDefinition's JSON. The persona is a system message before all others; the caller's own system
    messages come next, then the agent's examples, then the caller's other messages. A parameter of the call replaces
    the agent's default; a parameter that is `null` does not.
    """
    given = {name: value for name, value in request.items() if value is not None}
    defaults = _defaults(agent.get("parameters") or {}, given)
    messages = request["messages"]
    first = next((at for at, message in enumerate(messages) if message["role"] not in ("system", "developer")), None)
    instructions = messages[:first]
    first_message = [{"role": "system", "content": text}] if (text := persona(agent)) else []
    return {
        **defaults,
        **given,
        "model": agent["model"],
        "messages": [
            *first_message,
            *instructions,
            *(agent.get("messages") or ()),
            *(messages[len(instructions) :]),
        ],
    }


def _defaults(parameters: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the defaults that fit a call's parameters, so that no error names a parameter that the caller left out."""
    defaults = {
        name: value
        for name, value in parameters.items()
        if value is not None and name not in given and _OTHER_FORM.get(name) not in given
    }
    together = {**defaults, **given}
    aside = {name for name, about in _ABOUT.items() if not defaults.get(about)}
    if not together.get("logprobs"):
        aside.add("top_logprobs")
    if "audio" not in together.get("modalities", ()):
        aside.add("audio")
    return {name: value for name, value in defaults.items() if name not in aside}


def persona(agent: Mapping[str, Any]) -> str:
    """Return the text that gives the model its persona and instructions. It is empty if the agent has neither."""
    bio: str | Sequence[str] = agent.get("bio") or ()
    sentences = "\n".join([bio] if isinstance(bio, str) else bio)
    who = f"You are {agent['name']}." if sentences or agent.get("system_prompt") else ""
    return "\n\n".join(text for text in ("\n".join(filter(None, (who, sentences))), agent.get("system_prompt")) if text)
