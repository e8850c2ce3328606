from __future__ import annotations

import pytest

from headrace.telemetry.traceparent import read_context, trace_headers, trace_id

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"


@pytest.mark.parametrize("header", [PARENT, "cc" + PARENT[2:], "cc" + PARENT[2:] + "-more"])
def test_a_well_formed_traceparent_is_sent_on_as_version_00(header: str) -> None:
    context = read_context([header], [])
    assert context is not None
    assert trace_id(context) == TRACE
    assert trace_headers(context) == {"traceparent": PARENT}


@pytest.mark.parametrize(
    "header",
    [
        "",
        PARENT + " ",
        PARENT + "\n",
        PARENT + "-more",
        "cc" + PARENT[2:] + "more",
        "ff" + PARENT[2:],
        PARENT.upper(),
        PARENT.replace(TRACE, "0" * 32),
        PARENT.replace("b7ad6b7169203331", "0" * 16),
        PARENT[:-1],
    ],
)
def test_a_malformed_traceparent_is_no_context(header: str) -> None:
    assert read_context([header], ["a=1"]) is None


def test_one_request_has_one_traceparent() -> None:
    assert read_context([PARENT, PARENT], []) is None
    assert read_context([], ["a=1"]) is None


@pytest.mark.parametrize(
    ("headers", "sent_on"),
    [
        (["a=1"], "a=1"),
        (["a=1, b=2", "c=x y"], "a=1, b=2,c=x y"),
        (["a=" + "1" * 254 + ",b=" + "1" * 253], "a=" + "1" * 254 + ",b=" + "1" * 253),
        (["a=" + "1" * 254 + ",b=" + "1" * 254], None),
        (["1ab@c=d", ""], "1ab@c=d,"),
        (["A=1"], None),
        (["a=1,b"], None),
        (["a=1=2"], None),
        (["a=1\n"], None),
        (["a=é"], None),
        (["a=1\rb: 2"], None),
        ([" "], None),
    ],
)
def test_a_tracestate_goes_with_its_traceparent_unless_it_is_malformed_or_long(
    headers: list[str], sent_on: str | None
) -> None:
    state = {} if sent_on is None else {"tracestate": sent_on}
    assert trace_headers(read_context([PARENT], headers)) == {"traceparent": PARENT, **state}


def test_a_job_without_a_context_sends_no_header_on() -> None:
    assert trace_headers(None) == {}
