"""Portkey's gateway, an npm package that runs on Node."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from bench.checkout import BENCH_HOME
from bench.systems import System, Upstream, free_port

_HERE = Path(__file__).resolve().parent
_LOCK = "package-lock.json"
_PACKAGE = Path("node_modules", "@portkey-ai", "gateway")


class Portkey(System):
    """The gateway as its production image runs it: one Node process, without the console of requests.

    It checks no key: the client's goes on to the provider. Headers of each request name the provider.
    """

    name = "portkey"

    def __init__(self, upstream: Upstream) -> None:
        """Install the locked packages on the first use.

        Raises:
            RuntimeError: Node or npm is missing, or npm cannot install the packages.
        """
        super().__init__(upstream)
        self.headers = {
            "x-portkey-provider": "openai",
            "x-portkey-custom-host": f"http://127.0.0.1:{upstream.port}/v1",
        }
        for program in ("node", "npm"):
            if shutil.which(program) is None:
                raise RuntimeError(f"This machine has no {program}, which Portkey's gateway needs")
        self._installed = BENCH_HOME / "portkey"
        if not self._is_current():
            self._install()

    def _is_current(self) -> bool:
        copy = self._installed / _LOCK
        return copy.exists() and copy.read_bytes() == (_HERE / _LOCK).read_bytes()

    def _install(self) -> None:
        print("Installing Portkey's gateway …", file=sys.stderr, flush=True)
        unfinished = self._installed.with_suffix(".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        for name in ("package.json", _LOCK):
            shutil.copy(_HERE / name, unfinished)
        # No script of a package runs: the gateway comes built.
        npm = ["npm", "ci", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", "--fetch-retries", "1"]
        done = subprocess.run(npm, cwd=unfinished, check=False, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"npm cannot install Portkey's gateway: {done.stderr.strip()[-500:]}")
        shutil.rmtree(self._installed, ignore_errors=True)
        unfinished.rename(self._installed)

    def start(self) -> None:
        """Run the gateway."""
        self.port = free_port()
        command = ["node", "--require", str(_HERE / "loopback.cjs")]
        command += [str(self._installed / _PACKAGE / "build" / "start-server.js"), "--headless", f"--port={self.port}"]
        self._run(command, self._home(), {"NODE_ENV": "production"}, "/")

    @property
    def version(self) -> str:
        """The versions of the gateway and of Node."""
        package = json.loads((self._installed / _PACKAGE / "package.json").read_text())
        node = subprocess.run(["node", "--version"], check=True, capture_output=True, text=True).stdout.strip()
        return f"Portkey's gateway {package['version']} (Node {node.removeprefix('v')})"
