from __future__ import annotations

import fcntl
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path

import psutil
import psycopg
import pytest
import redis

from headrace.dev.data_dir import running_url
from headrace.dev.embedded import locate
from headrace.dev.errors import EmbeddedStoreError
from headrace.dev.postgres import EmbeddedPostgres
from headrace.dev.scratch import scratch_dir
from headrace.dev.store import EmbeddedStore
from headrace.dev.valkey import EmbeddedValkey
from headrace.settings import SettingError, Settings
from tests.service import free_port
from tests.waiting import PATIENCE

QUICK = {"fsync": "off"}

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root's stores run as another user")


@pytest.fixture
def home() -> Iterator[Path]:
    with scratch_dir() as path:
        yield path


def fetch(url: str, statement: str) -> object:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement)
        row = cursor.fetchone() if cursor.description else None
        return row[0] if row else None


def test_postgres_keeps_its_data_and_its_url(home: Path) -> None:
    postgres = EmbeddedPostgres(home / "postgres", QUICK)
    with postgres:
        url = postgres.url
        fetch(url, "CREATE TABLE kept AS SELECT 'ä' AS it")
        assert fetch(url, "SHOW server_version_num").__str__().startswith("18")
    assert postgres.pid is None
    with postgres:
        assert postgres.url == url
        assert fetch(url, "SELECT it FROM kept") == "ä"


def test_valkey_keeps_its_data_and_its_url(home: Path) -> None:
    valkey = EmbeddedValkey(home / "valkey")
    with valkey:
        url = valkey.url
        with redis.Redis.from_url(url) as client:
            client.set("kept", "it")
    with valkey:
        assert valkey.url == url
        with redis.Redis.from_url(url) as client:
            assert client.get("kept") == b"it"


def test_options_replace_ours(home: Path) -> None:
    with EmbeddedPostgres(home / "postgres", QUICK | {"max_connections": "17"}) as postgres:
        assert fetch(postgres.url, "SHOW max_connections") == "17"
    with EmbeddedValkey(home / "valkey", {"appendonly": "no"}) as valkey, redis.Redis.from_url(valkey.url) as client:
        assert client.config_get("appendonly") == {"appendonly": "no"}


def test_two_run_beside_each_other(home: Path) -> None:
    with (
        EmbeddedPostgres(home / "one", QUICK) as one,
        EmbeddedPostgres(home / "two", QUICK) as two,
        EmbeddedValkey(home / "three") as three,
        EmbeddedValkey(home / "four") as four,
    ):
        fetch(one.url, "CREATE TABLE mine ()")
        assert fetch(two.url, "SELECT to_regclass('mine')") is None
        with redis.Redis.from_url(three.url) as client:
            client.set("mine", "1")
        with redis.Redis.from_url(four.url) as client:
            assert client.get("mine") is None


def test_a_directory_has_one_user_at_a_time(home: Path) -> None:
    in_use = pytest.raises(EmbeddedStoreError, match=f"valkey is in use by process {os.getpid()}")
    with EmbeddedValkey(home / "valkey"), in_use:
        EmbeddedValkey(home / "valkey").start()
    with EmbeddedValkey(home / "valkey") as again:
        assert again.pid is not None


def test_a_killed_server_starts_again_with_its_data(home: Path) -> None:
    with EmbeddedPostgres(home / "postgres") as postgres:
        fetch(postgres.url, "CREATE TABLE kept ()")
        server = psutil.Process(postgres.pid)
        server.kill()
        server.wait(PATIENCE)
        postgres.start()
        assert fetch(postgres.url, "SELECT to_regclass('kept')::text") == "kept"


STARTER = """
import sys, time
from pathlib import Path
from headrace.dev.postgres import EmbeddedPostgres
from headrace.dev.scratch import scratch_dir
from headrace.dev.valkey import EmbeddedValkey
with scratch_dir() as scratch:
    postgres, valkey = EmbeddedPostgres(Path(sys.argv[1]), {"fsync": "off"}), EmbeddedValkey(scratch / "valkey")
    postgres.start()
    valkey.start()
    print(postgres.pid, valkey.pid, scratch, flush=True)
    time.sleep(600)
"""


def test_a_killed_starter_leaves_nothing_behind(home: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", STARTER, home / "postgres"], stdout=subprocess.PIPE, text=True
    ) as starter:
        assert starter.stdout is not None
        *pids, scratch = starter.stdout.readline().split()
        servers = [psutil.Process(int(pid)) for pid in pids]
        everything = [*psutil.Process(starter.pid).children(recursive=True), *servers]
        starter.kill()
    # The next start waits for the last of the old server's processes by itself.
    with EmbeddedPostgres(home / "postgres", QUICK) as postgres:
        assert fetch(postgres.url, "SELECT 1") == 1
    _, alive = psutil.wait_procs(everything, PATIENCE)
    assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []
    assert not Path(scratch).exists()


@pytest.mark.parametrize("kind", [EmbeddedPostgres, EmbeddedValkey])
def test_a_long_path_has_its_socket_elsewhere(home: Path, kind: type[EmbeddedStore]) -> None:
    store = kind(home / ("long" * 30))
    with store:
        assert store.socket_dir.stat().st_mode & 0o077 == 0
        assert (store.socket_dir / store.socket_name).is_socket()
        assert store.data_dir not in store.socket_dir.parents
    assert not store.socket_dir.exists()


@pytest.mark.parametrize("kind", [EmbeddedPostgres, EmbeddedValkey])
def test_no_port_is_open(home: Path, kind: type[EmbeddedStore]) -> None:
    with kind(home / "store") as store:
        assert store.socket_dir.stat().st_mode & 0o077 == 0
        assert psutil.Process(store.pid).net_connections("inet") == []


def test_valkey_listens_on_a_port_that_is_asked_for(home: Path) -> None:
    with (
        EmbeddedValkey(home / "valkey", {"port": str(free_port())}) as valkey,
        redis.Redis.from_url(valkey.url) as client,
    ):
        assert valkey.url.startswith("redis://")
        assert client.ping()


def test_a_cluster_of_another_version_is_left_alone(home: Path) -> None:
    with EmbeddedPostgres(home / "postgres", QUICK) as postgres:
        pass
    version = home / "postgres" / "cluster" / "PG_VERSION"
    version.write_text("17\n")
    with pytest.raises(EmbeddedStoreError, match=r"was made by Postgres 17, and this is 18"):
        postgres.start()
    version.write_text("18\n")
    with postgres:
        pass


def test_what_an_interrupted_first_start_left_is_replaced(home: Path) -> None:
    unfinished = home / "postgres" / "cluster.new"
    unfinished.mkdir(parents=True)
    (unfinished / "PG_VERSION").write_text("18\n")
    with EmbeddedPostgres(home / "postgres", QUICK) as postgres:
        assert fetch(postgres.url, "SELECT 1") == 1


def test_a_server_that_refuses_its_settings_says_why(home: Path) -> None:
    with pytest.raises(EmbeddedStoreError, match=r"Postgres stopped while starting.*no_such_setting"):
        EmbeddedPostgres(home / "postgres", {"no_such_setting": "1"}).start()


def test_the_password_is_on_no_command_line(home: Path) -> None:
    with EmbeddedValkey(home / "valkey") as valkey:
        password = valkey.url.partition("//:")[2].partition("@")[0]
        assert password not in " ".join(psutil.Process(valkey.pid).cmdline())
        with pytest.raises(redis.AuthenticationError), redis.Redis.from_url(valkey.url.replace(password, "")) as client:
            client.ping()
        files = [path for path in (home / "valkey").rglob("*") if path.is_file()]
        assert files
        assert all(path.stat().st_mode & 0o077 == 0 for path in files)


def test_the_stores_see_none_of_our_variables(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    with EmbeddedPostgres(home / "postgres", QUICK) as postgres, EmbeddedValkey(home / "valkey") as valkey:
        for store in (postgres, valkey):
            assert "OPENAI_API_KEY" not in psutil.Process(store.pid).environ()


def test_other_commands_find_running_stores(home: Path) -> None:
    settings = Settings(data_dir=home)
    with pytest.raises(EmbeddedStoreError, match="Set DATABASE_URL and REDIS_URL, or start `headrace dev`"):
        locate(settings)
    with EmbeddedPostgres(home / "postgres", QUICK) as postgres:
        assert locate(settings, redis=False).database_url == postgres.url
        with EmbeddedValkey(home / "valkey") as valkey:
            assert locate(settings).redis_url == valkey.url
            theirs = settings.model_copy(update={"database_url": "postgresql://theirs"})
            assert locate(theirs).database_url == "postgresql://theirs"
    with pytest.raises(EmbeddedStoreError):
        locate(settings)


def test_other_commands_do_not_find_stores_that_are_still_starting(home: Path) -> None:
    with (home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert running_url(home) == ""


@as_root
def test_a_directory_out_of_reach_is_said_to_be(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    with pytest.raises(SettingError, match=r"runs as `nobody`.*HEADRACE_DATA_DIR"):
        EmbeddedPostgres(tmp_path / "postgres").start()


@as_root
@pytest.mark.parametrize("kind", [EmbeddedPostgres, EmbeddedValkey])
def test_programs_out_of_reach_are_copied_once(
    kind: type[EmbeddedPostgres | EmbeddedValkey], home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o700)
    package = kind.distribution.replace("-", "_")
    installed = importlib.util.find_spec(package)
    assert installed is not None
    assert installed.origin is not None
    for directory in (package, f"{package}.libs"):
        (tmp_path / directory).symlink_to(Path(installed.origin).parent.with_name(directory))
    closed = ModuleSpec(package, None, origin=str(tmp_path / package / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: closed)
    store = kind(home / "store")
    for _ in range(2):
        with store:
            assert store.pid is not None
            assert Path(psutil.Process(store.pid).exe()).is_relative_to(home)
