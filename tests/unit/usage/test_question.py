"""Valid questions to the ledger, and the computation of percentiles."""

from __future__ import annotations

from collections.abc import Sequence
from zoneinfo import ZoneInfo

import pytest

from headrace.errors import InvalidRequestError
from headrace.usage.latency import percentiles
from headrace.usage.question import Question, parse_zone

DAY = 86_400


def test_no_zone_is_utc() -> None:
    assert parse_zone(None) == ZoneInfo("UTC")


@pytest.mark.parametrize("name", ["UTC", "Europe/Berlin", "America/Argentina/Ushuaia", "Etc/GMT+12"])
def test_a_zone_of_the_world_is_known(name: str) -> None:
    assert parse_zone(name).key == name


# Postgres takes the first ones for abbreviations, which know no summer, and does not know the next ones at all.
@pytest.mark.parametrize(
    "name",
    [
        *("CET", "EET", "MET", "WET", "EST", "MST", "HST", "EST5EDT", "GMT", "utc"),
        *("localtime", "posixrules", "Factory", "posix/Europe/Berlin", "Mars/Olympus"),
        *("", "europe/berlin", "Europe/", "../UTC", "Europe/Berlin\0", "/etc/hosts"),
    ],
)
def test_what_postgres_would_read_otherwise_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        parse_zone(name)
    assert (refused.value.param, refused.value.code) == ("time_zone", "invalid_value")
    assert "'Europe/Berlin'" in refused.value.message


@pytest.mark.parametrize(("groups", "rolled"), [(["key"], True), (["model", "provider"], True), (["agent"], False)])
def test_percentiles_that_no_roll_up_has_are_limited_to_31_days(groups: Sequence[str], rolled: bool) -> None:
    question = Question(["acct_1"], 0, 32 * DAY, groups=groups)
    question.check()
    Question(["acct_1"], 0, 31 * DAY, groups=groups).check(latency=True)
    if rolled:
        question.check(latency=True)
        return
    with pytest.raises(InvalidRequestError) as refused:
        question.check(latency=True)
    assert refused.value.param == "start"


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([], (None, None, None, None)),
        ([(40, 1)], (1.02, 1.02, 1.02, 1.02)),
        ([(44, 1), (40, 99)], (1.02, 1.02, 1.02, 1.02)),
        ([(44, 2), (40, 98)], (1.02, 1.02, 1.02, 2.05)),
        ([(40, 50), (48, 50)], (1.02, 4.1, 4.1, 4.1)),
    ],
)
def test_a_percentile_is_the_first_step_that_as_many_do_not_exceed(
    counts: list[tuple[int, int]], expected: tuple[float | None, ...]
) -> None:
    assert tuple(percentiles(counts).values()) == expected
