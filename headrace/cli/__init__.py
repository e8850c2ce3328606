"""The `headrace` command. A group of commands is a module here, imported only when one of its commands runs."""

from __future__ import annotations

import importlib
import io
import sys
from typing import Any

import click

from headrace import PARTS
from headrace.settings import SettingError, read_settings

# The first place to look, as the user may have packages named `api` or `worker` too.
sys.path.insert(0, str(PARTS))

# The module of each command.
_MODULES = {
    "dev": "dev",
    "demo": "demo",
    "batch": "batch",
    "top": "top",
    "api": "parts",
    "worker": "parts",
    "scheduler": "parts",
    "console": "parts",
    "migrate": "parts",
    "keys": "keys",
    "jobs": "jobs",
    "usage": "usage",
    "config": "config",
    "providers": "providers",
}


class SettingProblem(click.ClickException):
    """A setting is not valid: one line of text, and the exit code of wrong usage."""

    exit_code = 2


class _Group(click.Group):
    def main(self, *arguments: Any, **options: Any) -> Any:
        # Letters that the locale lacks are replaced. JSON lines and CSV are written as UTF-8 bytes instead.
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")
        return super().main(*arguments, **options)

    def list_commands(self, context: click.Context) -> list[str]:
        del context
        return list(_MODULES)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        del context
        if name not in _MODULES:
            return None
        module = importlib.import_module(f"headrace.cli.{_MODULES[name]}")
        command: click.Command = getattr(module, name)
        return command


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="headrace", message="%(prog)s %(version)s")
@click.pass_context
def main(context: click.Context) -> None:
    """Run a durable queue and gateway for LLM completions. Start with `headrace dev`."""
    try:
        context.obj = read_settings()
    except SettingError as error:
        raise SettingProblem(str(error)) from None
