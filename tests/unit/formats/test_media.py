"""Media in content parts: data that is not base64 is refused by the name of its field."""

from __future__ import annotations

import pytest

from headrace.errors import InvalidRequestError
from headrace.formats.media import audio_of, file_of


@pytest.mark.parametrize("data", ["!", "iVBORé", "\u0661", "a", ""])
def test_invalid_base64_is_refused_by_the_name_of_its_field(data: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        file_of({"type": "file", "file": {"file_data": data}}, "messages[0].content[0]")
    assert caught.value.param == "messages[0].content[0].file.file_data"
    with pytest.raises(InvalidRequestError) as caught:
        audio_of({"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}, "messages[0].content[0]")
    assert caught.value.param == "messages[0].content[0].input_audio.data"
