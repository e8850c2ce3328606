"""The parts of a message's content."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, Tag

from headrace.formats.chat.base import PARTS, Open, Word, by_type


class PromptCacheBreakpoint(Open):
    """The end of a prefix of the prompt that is worth caching."""

    mode: Literal["explicit"]


class _Part(Open):
    prompt_cache_breakpoint: PromptCacheBreakpoint | None = None


class TextPart(_Part):
    """Text."""

    type: Literal["text"]
    text: str


class ImageURL(Open):
    """Where an image is, and in what detail to look at it."""

    url: str
    detail: Word | None = None


class ImagePart(_Part):
    """An image, by its URL or inside a `data:` URL."""

    type: Literal["image_url"]
    image_url: ImageURL


class InputAudio(Open):
    """The data of a recording."""

    data: str
    format: Literal["wav", "mp3"]


class AudioPart(_Part):
    """A recording, in base64."""

    type: Literal["input_audio"]
    input_audio: InputAudio


class File(Open):
    """The id of an uploaded file, or its name and data."""

    filename: str | None = None
    file_data: str | None = None
    file_id: str | None = None


class FilePart(_Part):
    """A file, uploaded before or in base64."""

    type: Literal["file"]
    file: File


class RefusalPart(Open):
    """What the model said to refuse an earlier request."""

    type: Literal["refusal"]
    refusal: str


class OtherPart(_Part):
    """A part that only some servers know, such as vLLM's `video_url`."""

    type: Word


Text = str | Annotated[list[TextPart], PARTS]
UserPart = Annotated[
    Annotated[TextPart, Tag("text")]
    | Annotated[ImagePart, Tag("image_url")]
    | Annotated[AudioPart, Tag("input_audio")]
    | Annotated[FilePart, Tag("file")]
    | Annotated[OtherPart, Tag("other")],
    by_type("text", "image_url", "input_audio", "file"),
]
AssistantPart = Annotated[TextPart | RefusalPart, Field(discriminator="type")]
