"""Images, recordings and files in the content parts of a request, prepared for the formats of other providers."""

from __future__ import annotations

import base64
import mimetypes
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from headrace.errors import invalid_parameter

_DATA_URL = re.compile(r"data:(?P<type>[\w.+-]+/[\w.+-]+)?(?:;[\w.+-]+=[^;,]*)*(?P<base64>;base64)?,", re.ASCII)


# Names that many programs use for a media type, and the registered ones.
_SYNONYMS = {"image/jpg": "image/jpeg", "image/pjpeg": "image/jpeg", "image/x-png": "image/png"}


@dataclass(frozen=True, slots=True)
class Medium:
    """An image, a recording or a file: its media type, and either its data in base64 or its URL."""

    media_type: str
    data: str | None
    url: str | None = None
    name: str | None = None

    def text(self, param: str) -> str:
        """Return data that is text.

        Raises:
            InvalidRequestError: The data is not UTF-8.
        """
        try:
            return base64.b64decode(self.data or "").decode()
        except UnicodeDecodeError:
            raise invalid_parameter(param, "it is not text in UTF-8") from None


def image_of(part: Mapping[str, Any], param: str) -> Medium:
    """Return the image of an `image_url` part.

    Raises:
        InvalidRequestError: The URL is neither `data:` nor `https:`, or malformed. `param` is the part's path.
    """
    url: str = part["image_url"]["url"]
    param = f"{param}.image_url.url"
    if url.startswith("data:"):
        return _from_data_url(url, param)
    if not url.startswith("https://"):
        raise invalid_parameter(param, "this model's provider takes https: and data: URLs")
    guessed, _ = mimetypes.guess_type(url.partition("?")[0])
    return Medium(guessed if guessed is not None and guessed.startswith("image/") else "image/jpeg", None, url)


def audio_of(part: Mapping[str, Any], param: str) -> Medium:
    """Return the recording of an `input_audio` part. Raises InvalidRequestError where it is not base64."""
    audio = part["input_audio"]
    return Medium(f"audio/{audio['format']}", _checked(audio["data"], f"{param}.input_audio.data"))


def file_of(part: Mapping[str, Any], param: str) -> Medium:
    """Return the file of a `file` part with data: a `data:` URL, or base64, whose type is that of the file's name.

    Raises:
        InvalidRequestError: The data is neither.
    """
    file = part["file"]
    data: str = file["file_data"]
    param, name = f"{param}.file.file_data", file.get("filename")
    if data.startswith("data:"):
        medium = _from_data_url(data, param)
        return Medium(medium.media_type, medium.data, name=name)
    guessed, _ = mimetypes.guess_type(name or "")
    return Medium(guessed or "application/pdf", _checked(data, param), name=name)


def _from_data_url(url: str, param: str) -> Medium:
    match = _DATA_URL.match(url)
    if match is None or match["base64"] is None:
        raise invalid_parameter(param, "it is not a data: URL in base64")
    named = (match["type"] or "text/plain").lower()
    return Medium(_SYNONYMS.get(named, named), _checked(url[match.end() :], param))


def _checked(data: str, param: str) -> str:
    try:
        base64.b64decode(data, validate=True)
    except ValueError:
        raise invalid_parameter(param, "it is not base64") from None
    if not data:
        raise invalid_parameter(param, "there is nothing in it")
    return data
