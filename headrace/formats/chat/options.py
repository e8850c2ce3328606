"""The parameters of a chat request that are objects of their own."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from headrace.formats.chat.base import Open, Word
from headrace.formats.chat.offered import FunctionName
from headrace.formats.chat.parts import Text


class TextResponseFormat(Open):
    """Text, the default."""

    type: Literal["text"]


class JSONObjectResponseFormat(Open):
    """Any JSON object."""

    type: Literal["json_object"]


class JSONSchema(Open):
    """A JSON Schema and its name."""

    name: FunctionName
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class JSONSchemaResponseFormat(Open):
    """JSON that follows a schema."""

    type: Literal["json_schema"]
    json_schema: JSONSchema


ResponseFormat = Annotated[
    TextResponseFormat | JSONObjectResponseFormat | JSONSchemaResponseFormat, Field(discriminator="type")
]


class CustomVoice(Open):
    """A voice of the client's own."""

    model_config = ConfigDict(extra="forbid")

    id: str


class AudioOutput(Open):
    """How the model shall sound."""

    voice: str | CustomVoice
    format: Literal["wav", "aac", "mp3", "flac", "opus", "pcm16"]


class Prediction(Open):
    """Text that most of the answer is expected to repeat."""

    type: Literal["content"]
    content: Text


class StreamOptions(Open):
    """What a stream shall contain."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Location(Open):
    """Roughly where the user is."""

    country: str | None = None
    region: str | None = None
    city: str | None = None
    timezone: str | None = None


class UserLocation(Open):
    """Where the user is."""

    type: Literal["approximate"]
    approximate: Location


class WebSearchOptions(Open):
    """How the model shall search the web."""

    user_location: UserLocation | None = None
    search_context_size: Literal["low", "medium", "high"] | None = None


class PromptCacheOptions(Open):
    """How OpenAI shall cache the prompt."""

    ttl: Word | None = None
    mode: Literal["implicit", "explicit"] | None = None


class ModerationConfig(Open):
    """What moderation does with what it finds."""

    mode: Literal["score", "block"]


class ModerationPolicy(Open):
    """What moderation does about the prompt, and about the answer."""

    input: ModerationConfig | None = None
    output: ModerationConfig | None = None


class Moderation(Open):
    """How OpenAI shall moderate the prompt and the answer."""

    model: str
    policy: ModerationPolicy | None = None
