"""The `headrace` command. A group of commands is a module here, imported only when one of its commands runs."""

from __future__ import annotations

import importlib
import io
import sys
from typing import Any

import click

from headrace import PARTS
from headrace.settings import SettingError, read_settings

# First, so that a package of the user's that is called `api` or `worker` is not taken for ours.
sys.path.insert(0, str(PARTS))

_COMMANDS = {
    "dev": "headrace.cli.dev:dev",
    "demo": "headrace.cli.demo:demo",
    "batch": "headrace.cli.batch:batch",
    "api": "headrace.cli.parts:api",
    "worker": "headrace.cli.parts:worker",
    "scheduler": "headrace.cli.parts:scheduler",
    "migrate": "headrace.cli.parts:migrate",
    "keys": "headrace.cli.keys:keys",
    "jobs": "headrace.cli.jobs:jobs",
    "usage": "headrace.cli.usage:usage",
    "config": "headrace.cli.config:config",
    "providers": "headrace.cli.providers:providers",
}


class SettingProblem(click.ClickException):
    """What an operator has set makes no sense: one line, and the exit code of a wrong usage."""

    exit_code = 2


class _Group(click.Group):
    def main(self, *arguments: Any, **options: Any) -> Any:
        # A locale without a letter shows another in its place; JSON lines and CSV are written as UTF-8 bytes.
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")
        return super().main(*arguments, **options)

    def list_commands(self, context: click.Context) -> list[str]:
        del context
        return list(_COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        del context
        if name not in _COMMANDS:
            return None
        module, attribute = _COMMANDS[name].split(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="headrace", message="%(prog)s %(version)s")
@click.pass_context
def main(context: click.Context) -> None:
    """Run a durable queue and gateway for chat completions. Start with `headrace dev`."""
    try:
        context.obj = read_settings()
    except SettingError as error:
        raise SettingProblem(str(error)) from None
