"""The permissions of the containers, read from `docker-compose.yml` and the `Dockerfile`."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from headrace.settings import Settings
from headrace.telemetry.health import HEALTH
from headrace.telemetry.server import listen_on, serving
from headrace.telemetry.stores import POSTGRES

ROOT = Path(__file__).resolve().parent.parent.parent
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
STORES = {"postgres", "valkey"}
PARTS = SERVICES.keys() - STORES - {"console"}
NO_DEFAULT = re.compile(r"\$\{[A-Z_]*PASSWORD:\?[^}]+\}")


def test_the_image_gets_every_file_that_it_copies() -> None:
    patterns = (ROOT / ".dockerignore").read_text().split()
    copied = re.findall(r"^COPY (?!--)(.+) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    names = [name for line in copied for name in line.split()]
    assert {"pyproject.toml", "headrace", "console"} <= set(names)
    for name in names:
        assert (ROOT / name).exists()
        # The last pattern that matches decides.
        decides = [pattern for pattern in patterns if fnmatch.fnmatchcase(name, pattern.removeprefix("!"))][-1]
        assert decides.startswith("!"), f"{name} is not sent to the builder"


@pytest.mark.parametrize("name", SERVICES)
def test_a_container_can_do_no_more_than_it_must(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert set(service.get("cap_add", ())) <= (
        {"CHOWN", "DAC_OVERRIDE", "FOWNER", "SETGID", "SETUID"} if name in STORES else set()
    )
    assert "no-new-privileges:true" in service["security_opt"]
    assert service["deploy"]["resources"]["limits"].keys() == {"cpus", "memory", "pids"}
    assert not {"privileged", "network_mode", "pid", "ipc"} & service.keys()
    assert not any("docker.sock" in str(volume) for volume in service.get("volumes", ()))


def test_no_password_has_a_default_and_every_store_has_one() -> None:
    text = "\n".join(
        line for line in (ROOT / "docker-compose.yml").read_text().splitlines() if not line.startswith("#")
    )
    named = re.findall(r"\$\{[A-Z_]*PASSWORD[^}]*\}", text)
    assert named
    assert all(NO_DEFAULT.fullmatch(one) for one in named)
    assert NO_DEFAULT.fullmatch(SERVICES["postgres"]["environment"]["POSTGRES_PASSWORD"])
    assert NO_DEFAULT.fullmatch(SERVICES["valkey"]["environment"]["VALKEY_PASSWORD"])
    assert "configs" not in COMPOSE, "Compose writes none into a read-only container"
    for name in PARTS:
        environment = SERVICES[name]["environment"]
        assert "${POSTGRES_PASSWORD:?" in environment["DATABASE_URL"]
        assert environment["REDIS_URL"].startswith("redis://:${VALKEY_PASSWORD:?")


def test_valkey_reads_its_configuration_with_its_password(tmp_path: Path) -> None:
    shell, option, script = SERVICES["valkey"]["command"]
    entry = tmp_path / "docker-entrypoint.sh"
    entry.write_text('#!/bin/sh\necho "$@"\ncat\n')
    entry.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "VALKEY_PASSWORD": "abc123"}
    command = [shell, option, script.replace("$$", "$")]  # as Compose passes it on
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()
    assert told[:3] == ["valkey-server -", "requirepass abc123", "dir /data"]
    assert "abc123" not in " ".join(SERVICES["valkey"]["command"])


def test_secrets_go_to_the_parts_that_need_them_alone() -> None:
    holders = {
        secret: {name for name in SERVICES if secret in SERVICES[name].get("environment", ())}
        for secret in ("HEADRACE_BOOTSTRAP_KEY", "HEADRACE_SECRET_KEY")
    }
    assert holders == {"HEADRACE_BOOTSTRAP_KEY": {"api"}, "HEADRACE_SECRET_KEY": {"api", "scheduler"}}


def test_stores_are_reached_by_the_parts_alone() -> None:
    assert COMPOSE["networks"]["stores"]["internal"] is True
    for name in STORES:
        assert SERVICES[name]["networks"] == ["stores"]
        assert "ports" not in SERVICES[name]
    assert [port for name in SERVICES for port in SERVICES[name].get("ports", ())] == [
        "127.0.0.1:${HEADRACE_PORT:-8700}:8700",
        "127.0.0.1:${HEADRACE_CONSOLE_PORT:-8701}:8701",
    ]


def test_the_console_has_nothing_but_the_api() -> None:
    console = SERVICES["console"]
    assert console["networks"] == ["outside"]
    assert "PASSWORD" not in str(console["environment"])
    assert console["environment"]["HEADRACE_CONSOLE_API_URL"] == "http://api:8700"


def test_images_are_exact_and_may_be_given_by_digest() -> None:
    for name, variable in (("postgres", "POSTGRES_IMAGE"), ("valkey", "VALKEY_IMAGE")):
        assert re.fullmatch(rf"\$\{{{variable}:-[a-z/]+:\d+\.\d+(\.\d+)?\}}", SERVICES[name]["image"])
    dockerfile = (ROOT / "Dockerfile").read_text()
    [default] = re.findall(r"^ARG PYTHON_IMAGE=(\S+)$", dockerfile, re.M)
    assert re.fullmatch(r"python:\d+\.\d+\.\d+-slim", default)
    assert SERVICES["api"]["build"]["args"]["PYTHON_IMAGE"] == f"${{PYTHON_IMAGE:-{default}}}"
    assert set(re.findall(r"^FROM (\S+)", dockerfile, re.M)) == {"${PYTHON_IMAGE}"}


def test_the_image_runs_as_a_user_and_installs_what_is_locked() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    final = dockerfile.rpartition("FROM ")[2]
    [user] = re.findall(r"^USER (\S+)$", final, re.M)
    assert int(user.partition(":")[0]) > 0
    assert final.index("USER ") < final.index("ENTRYPOINT")
    installs = [line for line in dockerfile.splitlines() if "pip install" in line and "requirements" in line]
    assert installs
    assert all("--require-hashes" in line for line in installs)
    assert not re.search(r"^(ADD|ENV .*(KEY|PASSWORD|SECRET))", dockerfile, re.M)


def probes() -> dict[str, list[str]]:
    """Return the health checks as commands: the image's own, and those of parts in `docker-compose.yml`."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", "")
    [command] = re.findall(r"^HEALTHCHECK .*CMD (\[.*\])$", text, re.M)
    checks = {name: SERVICES[name].get("healthcheck", {}).get("test") for name in SERVICES.keys() - STORES}
    return {"image": json.loads(command)} | {name: shlex.split(check) for name, check in checks.items() if check}


def test_each_part_has_a_health_check() -> None:
    assert probes().keys() == {"image", "api", "console"}
    assert SERVICES["migrate"]["healthcheck"] == {"disable": True}
    for name in PARTS:
        assert SERVICES[name]["environment"]["HEADRACE_METRICS_PORT"] > 0


@pytest.mark.parametrize(("name", "path"), [("image", "/livez"), ("api", "/readyz")])
def test_a_health_check_goes_by_the_status_of_its_path(name: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    command = probes()[name][-1]
    assert f"'{path}'" in command
    monkeypatch.setattr(POSTGRES, "up", True)
    listener = listen_on(Settings.model_construct(metrics_host="127.0.0.1"), 0)
    port = str(listener.getsockname()[1])

    def fails() -> bool:
        """Run the check at a metrics port of this process, beside a proxy that is not there."""
        environment = {"HEADRACE_METRICS_PORT": port, "http_proxy": "http://127.0.0.1:1"}
        run = [sys.executable, "-c", command.replace("8700", port)]
        return subprocess.run(run, env=environment, timeout=60, check=False, stderr=subprocess.DEVNULL).returncode != 0

    with serving("worker", listener):
        assert not fails()
        monkeypatch.setattr(HEALTH, "draining", True)
        assert fails() == (path == "/readyz")
        monkeypatch.setattr(HEALTH, "_ticked_at", HEALTH._ticked_at - 60)
        assert fails()
    assert fails()


def test_a_container_without_a_metrics_port_is_healthy() -> None:
    assert subprocess.run([sys.executable, *probes()["image"][1:]], env={}, timeout=60, check=False).returncode == 0
