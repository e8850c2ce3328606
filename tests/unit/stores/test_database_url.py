"""Every form of `DATABASE_URL` that libpq documents is read as libpq reads it; any other form is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from headrace.settings import SettingError
from headrace.stores.database_url import connection_parameters

FORMS = [
    "postgresql://",
    "postgresql://localhost",
    "postgres://localhost:5433/mydb",
    "postgresql://user:secret@localhost",
    "postgresql://u@h1:5432,h2:5433/db?target_session_attrs=read-write",
    "postgresql://u@h1,h2/db",
    "postgresql://u@[2001:db8::1234]:5433/database",
    "postgresql://u@%2Frun%2Fpostgresql/db",
    "postgresql:///db?host=/run/postgresql&port=5433",
    "postgresql://u:p%40ss%2F%3A%25w%C3%B6rd@h/my%20db?sslmode=require",
    "postgresql://u@h/db?options=-csearch_path%3Dapp",
    "postgresql://u@h/db?options=-c%20search_path%3Dapp%20-c%20work_mem%3D8MB&application_name=mine",
    "postgresql://u@h/db?connect_timeout=2&keepalives_idle=30",
    "host=localhost port=5432 dbname=mydb connect_timeout=10",
    "host=/run/postgresql user=me password='it''s' dbname = my\\ db".replace("''", "\\'"),
    "hostaddr=127.0.0.1 user=me",
    "postgresql://u@a,b/db?hostaddr=127.0.0.1,::1",
    "host=@abstract user=me",
    "dbname=mydb",
]

REFUSED = {
    "mysql://u:hidden@h/db": "postgresql://",
    "sqlite:///x": "postgresql://",
    "http://u:hidden@h/": "postgresql://",
    "postgresql+asyncpg://u:hidden@h/db": "postgresql://",
    "u:hidden@h/db": "no URL",
    "hidden": "no URL",
    "postgresql://u:hidden%zz@h/db": "percent-encoded",
    "postgresql://u:hidden@h/db?pool_size=3": "pool_size",
    "host=h password=hidden pool_size=3": "pool_size",
    "host=h password='hidden": "unterminated",
    "postgresql://u:hidden@h/db?sslmode=maybe": "sslmode",
    "postgresql://u:hidden@h:port/db": "port",
    "postgresql://u:hidden@h:99999/db": "port",
    "postgresql://u:hidden@h1,h2:1,h3:2/db?port=1,2": "port",
    "postgresql://u:hidden@h/db?connect_timeout=soon": "connect_timeout",
    "postgresql://u:hidden@h/db?keepalives_idle=soon": "keepalives_idle",
    "postgresql://u:hidden@h/db?target_session_attrs=any-one": "target_session_attrs",
    "postgresql://u:hidden@[2001:db8::1/db": "IPv6",
    "service=nosuchservice password=hidden": "nosuchservice",
    "postgresql://u:secret@hidden@h/db": "%40",
    "postgresql://u:hidden@a,b/db?hostaddr=127.0.0.1": "hostaddr",
    "postgresql://u:hidden@h/db?hostaddr=localhost": "hostaddr",
    "postgresql://u:hidden@h/db?keepalives=on": "keepalives",
}


@pytest.mark.parametrize("url", FORMS)
def test_a_form_is_read_as_libpq_reads_it(url: str) -> None:
    given = conninfo_to_dict(url)
    found = connection_parameters(url, "worker")
    assert {name: found[name] for name in given} == given
    assert conninfo_to_dict(make_conninfo("", **found))["fallback_application_name"] == "headrace worker"


@pytest.mark.parametrize("url", REFUSED)
def test_what_libpq_does_not_take_is_refused_in_one_line(url: str) -> None:
    with pytest.raises(SettingError) as refused:
        connection_parameters(url)
    message = str(refused.value)
    assert message.startswith("DATABASE_URL")
    assert REFUSED[url] in message
    assert "\n" not in message
    assert "hidden" not in message


def test_hosts_of_a_service_file_have_ports_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    services = tmp_path / "services"
    services.write_text("[pair]\nhost=a,b\nport=5432,5433\n[bad]\nhost=a\nport=none\n")
    monkeypatch.setenv("PGSERVICEFILE", str(services))
    assert connection_parameters("postgresql:///db?service=pair")["service"] == "pair"
    with pytest.raises(SettingError, match="port"):
        connection_parameters("service=bad")


def test_hosts_of_the_environment_have_ports_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGHOST", "a,b")
    monkeypatch.setenv("PGPORT", "5432,5433")
    assert connection_parameters("postgresql:///db")["dbname"] == "db"
