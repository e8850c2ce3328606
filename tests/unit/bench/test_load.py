import json
from dataclasses import replace

import pytest

from bench.load import Answer, Load, Plan, judge, read_job
from bench.systems import Upstream
from bench.upstream import Script

WORDS = "".join(Script(10, 0).words())
PLAN = Plan(
    port=0,
    path="/v1/chat/completions",
    key="sk-bench",
    client="chat",
    model="fake-d20",
    stream=False,
    concurrency=4,
    total=8,
    seconds=30,
    warmup=0,
    warmup_model="fake",
)


def job(status: str, content: str | None) -> bytes:
    result = content and {"choices": [{"message": {"content": content}}]}
    return json.dumps({"id": "job_1", "status": status, "result": result}).encode()


async def test_the_upstream_answers_late_and_every_connection_once() -> None:
    with Upstream() as upstream:
        plan = replace(PLAN, port=upstream.port)
        load = Load(plan)
        answers, errors, seconds = await load.run(plan.model, plan.total, plan.seconds, 0.0)
    outcome = judge(plan, load.asked, answers, errors, seconds)
    assert (outcome.asked, outcome.correct, outcome.errors) == (8, 8, [])
    # Its timers may fire a millisecond early, and never more.
    assert min(answer.latency for answer in answers) >= 0.019
    assert outcome.latency_p50 <= outcome.latency_p95 <= outcome.latency_p99


def test_a_models_name_is_its_script() -> None:
    assert Script.of("fake-d20") == Script(10, 0, 20)
    assert Script.of("fake-s100-p20") == Script(100, 20, 0)
    assert Script.of("fake-20") is None


def test_a_job_is_right_with_its_whole_answer() -> None:
    bodies = [job("completed", WORDS), job("completed", WORDS[:-5]), job("failed", None), job("running", None)]
    answers = [Answer(200, [body], 0.001, 0.001) for body in bodies]
    outcome = judge(replace(PLAN, client="jobs"), 5, answers, [], 1.0)
    assert (outcome.asked, outcome.correct, len(outcome.errors)) == (5, 1, 3)


def test_a_job_without_a_result_is_no_answer() -> None:
    with pytest.raises(TypeError):
        read_job(job("failed", None))
