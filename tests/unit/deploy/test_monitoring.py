"""Prometheus and Grafana beside the services of `docker-compose.yml`, read from the files that wire them."""

from __future__ import annotations

from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from tests.promql import DEPLOY

ROOT = DEPLOY.parent


def load(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / name).read_text())
    return loaded


HEADRACE = load("docker-compose.yml")
MONITORING = load("deploy/docker-compose.monitoring.yml")
SCRAPED = load("deploy/prometheus/prometheus.yml")["scrape_configs"]
OWN = MONITORING["services"].keys() - HEADRACE["services"].keys()
PARTS = {name for name, service in HEADRACE["services"].items() if service.get("image") == "headrace"} - {
    "migrate",
    "console",
}


def test_every_part_is_scraped_at_its_port() -> None:
    names = [name for job in SCRAPED for found in job["dns_sd_configs"] for name in found["names"]]
    assert sorted(names) == sorted(PARTS)
    assert MONITORING["services"].keys() - OWN == PARTS
    for part in PARTS:
        service = MONITORING["services"][part]
        ports = {found["port"] for job in SCRAPED for found in job["dns_sd_configs"]}
        assert {service["environment"]["HEADRACE_METRICS_PORT"]} == ports
        assert service["networks"] == MONITORING["services"]["prometheus"]["networks"] == ["metrics"]
    assert MONITORING["networks"]["metrics"]["internal"] is True


def test_jobs_are_those_of_the_alerts() -> None:
    assert all(job["job_name"].startswith("headrace-") for job in SCRAPED)


@pytest.mark.parametrize("name", sorted(OWN))
def test_a_container_can_do_no_more_than_it_must(name: str) -> None:
    service = MONITORING["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert "no-new-privileges:true" in service["security_opt"]
    assert service["deploy"]["resources"]["limits"].keys() == {"cpus", "memory", "pids"}
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
    volumes = [volume.split(":") for volume in service["volumes"]]
    assert all((ROOT / source).exists() and rest[-1] == "ro" for source, *rest in volumes if source.startswith("."))


def test_the_password_has_no_default() -> None:
    environment = MONITORING["services"]["grafana"]["environment"]
    assert environment["GF_SECURITY_ADMIN_PASSWORD"].startswith("${GRAFANA_PASSWORD:?")


def test_grafana_finds_the_board_and_prometheus() -> None:
    [source] = load("deploy/grafana/provisioning/datasources/prometheus.yml")["datasources"]
    assert source["url"] == "http://prometheus:9090"
    [boards] = load("deploy/grafana/provisioning/dashboards/headrace.yml")["providers"]
    mounted = [volume.split(":") for volume in MONITORING["services"]["grafana"]["volumes"]]
    assert ["./deploy/grafana/headrace.json", f"{boards['options']['path']}/headrace.json", "ro"] in mounted
