"""`python -m bench.tracing`: the CPU that traces cost a job, in µs, in the code that makes and sends its spans.

Each kind of sampling has a process of its own, as the variables are read once. They take turns, and the median counts.
The spans are encoded and sent to a receiver on loopback, whose CPU does not count.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from api.jobs.tracing import trace_submission
from headrace.catalogue.models import Model, Provider, Route
from headrace.formats.registry import CLIENT_FORMATS
from headrace.ids import new_id
from headrace.jobs.records import ClaimedJob
from headrace.providers.client import ProviderClient
from headrace.telemetry.tracing import tracing
from worker.exchange import Exchange
from worker.spans import AttemptSpans

_ROUNDS = 7
_JOBS = 4000
# Jobs between two pauses in which the thread that sends spans may keep up, so that none is dropped.
_BURST = 200

_PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
_RATIO = "parentbased_traceidratio"
KINDS = {
    "off": {"OTEL_TRACES_EXPORTER": "none"},
    "0 %": {"OTEL_TRACES_SAMPLER": _RATIO, "OTEL_TRACES_SAMPLER_ARG": "0"},
    "1 %": {"OTEL_TRACES_SAMPLER": _RATIO, "OTEL_TRACES_SAMPLER_ARG": "0.01"},
    "100 %": {"OTEL_TRACES_SAMPLER": "parentbased_always_on"},
}
_REQUEST = {"messages": [{"role": "user", "content": "Hello there"}], "temperature": 0.5, "max_tokens": 100}
_COMPLETION = {
    "model": "model-1",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
}
_ROUTE = Route("bench", Provider(kind="openai", base_url="http://127.0.0.1:9/v1"), "model-1", Model(routes=["bench/*"]))


def measure() -> float:
    """Return the µs of CPU of this process a job, the sending of its spans included."""
    client = ProviderClient(connections=1)
    job = _claimed(None)
    renderer = CLIENT_FORMATS["chat"].renderer(job, _REQUEST, log=())
    exchange = Exchange(client, job, _ROUTE, _REQUEST, renderer=renderer, pass_on=lambda _: None)
    exchange._whole = _COMPLETION  # noqa: SLF001  (as it is after a call, whose cost is not the question)
    used = 0.0
    with tracing("worker"):
        _trace(exchange)
        for _ in range(0, _JOBS, _BURST):
            began = time.process_time()
            for _ in range(_BURST):
                _trace(exchange)
            time.sleep(0.1)
            used += time.process_time() - began
        began = time.process_time()
    return (used + time.process_time() - began) / _JOBS * 1e6


def _claimed(context: str | None) -> ClaimedJob:
    return ClaimedJob(
        id=new_id("job"),
        attempt=1,
        account_id="acct_0",
        key_id="key_0",
        model="model-1",
        request="",
        background=True,
        streamed=False,
        origin=None,
        tier="default",
        route=0,
        retries=0,
        created=int(time.time()),
        seconds_left=600,
        trace_context=context,
    )


def _trace(exchange: Exchange) -> None:
    """Do what traces add to the way of one job."""
    details = {"gen_ai.request.model": "model-1", "headrace.format": "chat"}
    span = trace_submission("job_0", "default", account_id="acct_0", parent=None, details={**details})
    context = None
    if span is not None:
        with span:
            context = span.context
    if context is None:
        return
    spans = AttemptSpans.of(_claimed(context))
    if spans is not None:
        spans.call(_ROUTE, _REQUEST, exchange)
        spans.called(exchange, None, seconds_to_first=0.1)
        spans.ending()
        spans.ended("completed", None)
        spans.close()


class _Receiver(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def main() -> None:
    """Measure every kind in turns, and print a table."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    inherited |= {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{server.server_port}"}
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(_ROUNDS):
        for kind, environment in KINDS.items():
            command = [sys.executable, "-m", "bench.tracing", "--measure"]
            printed = subprocess.run(command, env=inherited | environment, capture_output=True, check=True, text=True)
            found[kind].append(float(printed.stdout))
    print("| sampled | µs of CPU a job |\n| --- | ---: |")
    for kind, each in found.items():
        print(f"| {kind} | {statistics.median(each):.1f} ({min(each):.1f} to {max(each):.1f}) |")


if __name__ == "__main__":
    if sys.argv[1:] == ["--measure"]:
        print(measure())
    else:
        main()
