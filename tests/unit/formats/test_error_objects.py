from __future__ import annotations

from typing import Any

import orjson
import pytest

from headrace.errors import UpstreamRefusedError
from headrace.formats.error_objects import error_of, parse_error

TOO_LONG = [
    (  # vLLM
        (
            "You passed 9001 input tokens and requested 0 output tokens. However, the model's context length is only"
            " 8192 tokens, resulting in a maximum input length of 8192 tokens."
            " Please reduce the length of the input prompt."
        ),
        400,
    ),
    (  # vLLM, of a prompt that leaves no room for the answer
        (
            "'max_tokens' or 'max_completion_tokens' is too large: 100. This model's maximum context length is 8192"
            " tokens and your request has 8190 input tokens (100 > 8192 - 8190)."
        ),
        "BadRequestError",
    ),
    (  # DeepSeek
        (
            "This model's maximum context length is 131072 tokens. However, you requested 140000 tokens (140000 in the"
            " messages, 0 in the completion). Please reduce the length of the messages or completion."
        ),
        "invalid_request_error",
    ),
    (  # xAI
        "This model's maximum prompt length is 500000 but the request contains 600000 tokens.",
        "invalid-argument",
    ),
    (  # xAI, whose code is a sentence
        "This model's maximum prompt length is 500000 but the request contains 600000 tokens.",
        "Client specified an invalid argument",
    ),
    ("The input (9001 tokens) is longer than the model's context length (8192 tokens).", None),  # SGLang
    (
        "Requested token count exceeds the model's maximum context length of 8192 tokens.",
        "400",
    ),
    (  # Gemini, where it speaks OpenAI's format
        "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576).",
        400,
    ),
    ("the request exceeds the available context size, try increasing it", 400),  # llama.cpp
    ("prompt is too long: 210000 tokens > 200000 maximum", None),
]


@pytest.mark.parametrize(("message", "code"), TOO_LONG)
def test_a_prompt_that_is_too_long_is_known_by_its_message(message: str, code: Any) -> None:
    error = {"error": {"message": message, "type": "invalid_request_error", "param": "messages", "code": code}}
    assert parse_error(orjson.dumps(error))["code"] == "context_length_exceeded"
    reported = error_of({"error": {"message": message, "code": code or 400}})
    assert (type(reported), reported.code) == (UpstreamRefusedError, "context_length_exceeded")


@pytest.mark.parametrize("code", ["string_above_max_length", "rate_limit_exceeded", "model_not_found"])
def test_a_code_that_says_what_is_wrong_stays(code: str) -> None:
    error = {"error": {"message": "The maximum context length of your plan is 8192 tokens.", "code": code}}
    assert parse_error(orjson.dumps(error))["code"] == code


@pytest.mark.parametrize(
    "message",
    [
        "max_tokens is too large: 40000. This model supports at most 16384 completion tokens.",
        "Your input exceeds the maximum number of images allowed (16).",
        "Request too large: the limit is 30000 tokens per minute (TPM).",
        "The maximum prompt cache retention is 24h.",
    ],
)
def test_another_limit_is_not_the_context_window(message: str) -> None:
    error = {"error": {"message": message, "code": "invalid_request_error"}}
    assert parse_error(orjson.dumps(error))["code"] == "invalid_request_error"
