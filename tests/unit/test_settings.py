"""Invalid values of variables, and the error that an operator gets."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from headrace.cli import main
from headrace.settings import SettingError, read_settings

IN_VAIN = [
    ("HEADRACE_LOG_LEVEL", "foo"),
    ("HEADRACE_PORT", "http"),
    ("HEADRACE_PORT", "70000"),
    ("HEADRACE_BOOTSTRAP_KEY", "short"),
    ("HEADRACE_PREVIOUS_SECRET_KEYS", "short,shorter"),
    ("HEADRACE_LIMITS_WITHOUT_REDIS", "maybe"),
    ("HEADRACE_WEBHOOK_ALLOW_PRIVATE", "maybe"),
    ("HEADRACE_CORS_ORIGINS", "app.example.com"),
    ("HEADRACE_CORS_ORIGINS", "https://app.example.com/"),
    ("HEADRACE_CONSOLE_API_URL", "foo"),
    ("HEADRACE_CONSOLE_URL", "ftp://console.example.com"),
    ("HEADRACE_PUBLIC_URL", "headrace.example.com"),
    ("HEADRACE_USAGE_METADATA_KEYS", "x" * 65),
    ("HEADRACE_PING_SECONDS", "nan"),
    ("HEADRACE_PING_SECONDS", "inf"),
    ("HEADRACE_JOB_TIMEOUT_SECONDS", "1e300"),
    ("HEADRACE_RETENTION_DAYS", "0.99"),
    ("HEADRACE_BATCH_RETENTION_DAYS", "0.99"),
    ("HEADRACE_WORKER_SLOTS", "9" * 30),
    ("HEADRACE_MAX_BODY_BYTES", "20 MiB"),
    ("HEADRACE_HEARTBEAT_SECONDS", "10"),
]


@pytest.mark.parametrize(("variable", "value"), IN_VAIN)
def test_a_value_that_makes_no_sense_is_told_in_a_line(variable: str, value: str) -> None:
    ended = CliRunner(env={variable: value}).invoke(main, ["config", "check"])
    assert ended.exit_code == 2
    [line] = ended.output.splitlines()
    assert line.startswith(f"Error: {variable}")


@pytest.mark.parametrize("variable", ["HEADRACE_CONSOLE_API_URL", "HEADRACE_CONSOLE_URL"])
def test_an_invalid_address_is_told_without_a_pattern(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "foo")
    with pytest.raises(SettingError, match=f"^{variable}: it has to be an http or https address, such as https://"):
        read_settings()


def test_a_secret_that_is_too_short_is_measured_in_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_SECRET_KEY", "hunter2")
    with pytest.raises(SettingError, match="HEADRACE_SECRET_KEY: it has to have at least 32 characters") as raised:
        read_settings()
    assert "hunter2" not in str(raised.value)


def test_the_name_of_a_log_level_may_be_in_small_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_LOG_LEVEL", "debug")
    assert read_settings().log_level == "DEBUG"


@pytest.mark.parametrize("path", ["file", "file/below", "/proc/headrace"])
def test_a_data_directory_that_cannot_be_made_is_told_in_a_line(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    env = {"HEADRACE_DATA_DIR": str(tmp_path / path), "HEADRACE_PORT": "0", "HEADRACE_CONFIG": "", "REDIS_URL": ""}
    for secret_key in ("", "k" * 32):
        given = {**env, "DATABASE_URL": "", "HEADRACE_SECRET_KEY": secret_key}
        ended = CliRunner(env=given).invoke(main, ["dev"])
        assert ended.exit_code == 2
        assert ended.output.splitlines()[-1].startswith(f"Error: HEADRACE_DATA_DIR: {tmp_path / path}")


def test_a_configuration_that_is_not_there_is_told_by_its_variable(tmp_path: Path) -> None:
    ended = CliRunner(env={"HEADRACE_CONFIG": str(tmp_path / "none.toml")}).invoke(main, ["worker"])
    assert (ended.exit_code, ended.output.count("\n")) == (2, 1)
    assert "HEADRACE_CONFIG" in ended.output
