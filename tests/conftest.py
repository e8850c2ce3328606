"""The real service on stores of its own, once for the whole run, and the clients that tests reach it by."""

from __future__ import annotations

import gc
import os
import secrets
from collections.abc import AsyncIterator, Generator, Iterator

import httpx
import hypothesis
import openai
import psycopg
import pytest
from psycopg.rows import DictRow

from tests.fakes.provider import Provider, running_provider
from tests.service import (
    BOOTSTRAP_KEY,
    Service,
    Stores,
    catalogue,
    connect,
    embedded_stores,
    free_port,
    looking_at_rows,
    running_service,
)

# A busy machine is no fault of a test's: none has a time for each example.
hypothesis.settings.register_profile("headrace", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("headrace")


def pytest_runtest_setup() -> None:
    for service in Service.running:
        service.mark()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    # Python 3.11 parses source to report a failure, and fails at that itself when a collected task reports another
    # meanwhile: what a failed test left behind is collected before, and nothing during.
    if call.excinfo is not None:
        gc.collect()
        gc.disable()
    try:
        report = yield
    finally:
        gc.enable()
    if report.failed:
        report.sections.extend((f"service {service.directory.name}", service.tail()) for service in Service.running)
    return report


@pytest.hookimpl(trylast=True)
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    # At once, as a run that is cut off never comes to its summary. A test process that dies is reported like this too.
    if report.failed and "PYTEST_XDIST_WORKER" not in os.environ:
        print(f"\nFAILED {report.nodeid} ({report.when})", flush=True)  # noqa: T201


@pytest.fixture(scope="session")
def stores() -> Iterator[Stores]:
    """Postgres and Valkey that know nothing but this run."""
    with embedded_stores() as stores:
        yield stores


@pytest.fixture(scope="session")
def provider() -> Iterator[Provider]:
    """The fake provider. Tests share it and keep apart by the model they ask for."""
    with running_provider() as provider:
        yield provider


@pytest.fixture(scope="session")
def config(provider: Provider) -> str:
    """The text of headrace.toml."""
    return catalogue(provider.url(), provider.url("/second"), f"http://127.0.0.1:{free_port()}/v1")


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory, stores: Stores, config: str) -> Iterator[Service]:
    """API, worker and scheduler. Tests that break something start their own."""
    with running_service(tmp_path_factory.mktemp("service"), stores, config) as service:
        yield service


@pytest.fixture(scope="session")
def other_key(service: Service) -> str:
    """A key of another account, which may read its webhooks' secrets."""
    return str(service.create_key("other", "--scope", "webhooks:write")["key"])


@pytest.fixture
async def client(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    """A client with the first account's key, based on `/api/v1`."""
    async with connect(service, BOOTSTRAP_KEY) as client:
        yield client


@pytest.fixture
async def other(service: Service, other_key: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client of another account."""
    async with connect(service, other_key) as client:
        yield client


@pytest.fixture
async def anonymous(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    """A client without a key."""
    async with connect(service, None) as client:
        yield client


@pytest.fixture
async def openai_client(service: Service) -> AsyncIterator[openai.AsyncOpenAI]:
    """OpenAI's own client, as its users have it but for the base URL and the key."""
    async with openai.AsyncOpenAI(
        base_url=f"{service.base_url}/v1", api_key=BOOTSTRAP_KEY, timeout=60, max_retries=0
    ) as client:
        yield client


@pytest.fixture
async def database(stores: Stores) -> AsyncIterator[psycopg.AsyncConnection[DictRow]]:
    """A connection to look at rows with."""
    async with looking_at_rows(stores) as connection:
        yield connection


@pytest.fixture
def model() -> str:
    """A model of this test's own."""
    return f"fake-{secrets.token_hex(6)}"
