"""Ids that are made from a job's, and back."""

from __future__ import annotations

import pytest

from headrace import ids


def test_a_response_and_its_items_have_the_digits_of_their_job() -> None:
    job_id = ids.new_id("job")

    response = ids.response_id(job_id)
    assert ids.is_id(response, "resp")
    assert ids.job_id_of_response(response) == job_id

    first, last = ids.item_id("msg", job_id, 0), ids.item_id("fco", job_id, ids.FIRST_INPUT_ITEM + 9_999)
    assert first == "msg_" + job_id[4:] + "0000"
    assert ids.job_id_of_item(first) == ids.job_id_of_item(last) == job_id


@pytest.mark.parametrize("text", ["", "msg_1", "msg_" + "0" * 32, "msg_" + "0" * 37, "MSG_" + "0" * 36, "0" * 40])
def test_an_id_of_another_form_is_of_no_job(text: str) -> None:
    assert ids.job_id_of_item(text) is None
