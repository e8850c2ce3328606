"""A service for each module, whose processes tests kill and freeze."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest

from tests.service import SHORT_LEASES, Service, Stores, running_service


@pytest.fixture(scope="module")
def environment() -> Mapping[str, str]:
    """The settings of the module's `cluster`. A module may have its own."""
    return SHORT_LEASES


@pytest.fixture(scope="module")
def shared_cluster(
    tmp_path_factory: pytest.TempPathFactory, stores: Stores, config: str, environment: Mapping[str, str]
) -> Iterator[Service]:
    directory = tmp_path_factory.mktemp("cluster")
    with running_service(directory, stores.fresh(), config, environment=environment) as service:
        yield service


@pytest.fixture
def cluster(shared_cluster: Service) -> Service:
    """A service with one worker; a test starts the second when it needs it."""
    shared_cluster.restore()
    return shared_cluster
