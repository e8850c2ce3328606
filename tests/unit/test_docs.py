"""The documents agree with the code: they name every variable, path and file, and only existing ones."""

from __future__ import annotations

import configparser
import importlib
import json
import re
import runpy
import shutil
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import click
import pytest
import yaml  # type: ignore[import-untyped]
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute

import api.app
from api.app import create_app
from api.http.authentication import REQUIRED_SCOPES, authenticate
from headrace.catalogue.demo import DEMO_MODELS
from headrace.catalogue.load import load_catalogue, read_catalogue
from headrace.cli import main as command
from headrace.formats.chat import support
from headrace.formats.chat.request import EXTENSIONS, ChatRequest
from headrace.formats.chat.support import HANDLINGS, Format
from headrace.formats.responses import support as responses_support
from headrace.keys.principal import KeyScope
from headrace.settings import Settings

ROOT = Path(__file__).resolve().parent.parent.parent
GENERATED: dict[Path, str] = runpy.run_path(str(ROOT / "docs" / "generate.py"))["pages"]()
PAGES = (*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")))


def section(page: str, heading: str) -> str:
    text = (ROOT / page).read_text()
    _, found, rest = text.partition(f"\n## {heading}\n")
    assert found, f"{page} has no section {heading!r}"
    return rest.partition("\n## ")[0]


def test_every_variable_that_a_page_names_exists() -> None:
    variables = {
        str(field.validation_alias or f"HEADRACE_{name.upper()}") for name, field in Settings.model_fields.items()
    }
    variables |= {"HEADRACE_URL", "HEADRACE_API_KEY"}  # a client's, of `headrace batch`
    named = {name for page in PAGES for name in re.findall(r"\bHEADRACE_[A-Z_]+\b", page.read_text())}
    assert named <= variables


@pytest.mark.parametrize(("page", "text"), GENERATED.items(), ids=lambda value: getattr(value, "name", ""))
def test_a_generated_page_is_what_the_code_says(page: Path, text: str) -> None:
    assert page.read_text() == text, f"{page.name} is not what the code says: run `make reference`"


def limits() -> list[tuple[str, str]]:
    """Return each bound in docs/reference/limits.md, and the place where it is set."""
    rows = re.findall(r"^\|.*\|$", (ROOT / "docs" / "reference" / "limits.md").read_text(), re.M)
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    return [(row[1], row[-1].strip("`")) for row in cells if row[-1].startswith("`")]


@pytest.mark.parametrize(("bound", "place"), limits(), ids=lambda value: value)
def test_a_limit_is_the_one_documented(bound: str, place: str) -> None:
    if place.startswith("HEADRACE_"):
        value = Settings.model_fields[place.removeprefix("HEADRACE_").lower()].default
    else:
        module, _, name = place.partition(":")
        value = getattr(importlib.import_module(module), name)
    assert float(bound) == value


def operations() -> set[str]:
    paths = create_app(Settings()).openapi()["paths"]
    return {f"{method.upper()} {path.removeprefix('/api/v1')}" for path in paths for method in paths[path]}


def test_every_path_is_documented_and_no_other() -> None:
    documented = re.findall(r"^### `([A-Z]+ \S+)`", (ROOT / "docs" / "reference" / "api.md").read_text(), re.M)
    assert set(documented) == operations()


def required_scope(dependant: Dependant) -> str:
    """Return the scope that a route requires of a key: `none`, `any key`, or a scope."""
    calls = [dependency.call for dependency in dependant.dependencies]
    scopes = [REQUIRED_SCOPES[call] for call in calls if call in REQUIRED_SCOPES]
    if scopes:
        [scope] = scopes
        return f"`{scope}`"
    return "any key" if authenticate in calls else "none"


def test_the_scope_of_every_endpoint_is_documented() -> None:
    routers = [vars(part)["router"] for part in vars(api.app).values() if "router" in getattr(part, "__dict__", {})]
    routes = [route for router in routers for route in router.routes if isinstance(route, APIRoute)]
    asked = {
        f"{method} {route.path}".replace(":path", ""): required_scope(route.dependant)
        for route in routes
        for method in route.methods or ()
    }
    assert operations() <= asked.keys()
    table = section("docs/explanation/security.md", "What each endpoint asks of a key")
    assert dict(re.findall(r"^\| `([A-Z]+ \S+)` \| ([^|]+?) \|", table, re.M)) == asked


def test_every_scope_is_documented() -> None:
    table = section("docs/explanation/security.md", "What each scope may do")
    assert set(re.findall(r"^\| `([a-z:]+)` \|", table, re.M)) == set(get_args(KeyScope))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_inside_leads_somewhere(page: Path) -> None:
    targets = [target for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()) if "://" not in target]
    assert [target for target in targets if not (page.parent / target).exists()] == []


def navigation() -> list[str]:
    """Return the pages of the site in the order of its navigation."""
    groups = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["nav"]
    return [page for group in groups for pages in group.values() for entry in pages for page in entry.values()]


def test_every_page_is_in_the_navigation_once() -> None:
    pages = [page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")]
    assert sorted(navigation()) == sorted(pages)


def test_the_site_is_built_strictly_and_fetches_nothing_when_it_is_read(tmp_path: Path) -> None:
    shutil.copy(ROOT / "zensical.toml", tmp_path)
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    command = [str(Path(sys.executable).with_name("zensical")), "build", "--strict"]
    built = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    pages = list((tmp_path / "build" / "site").rglob("*.html"))
    assert len(pages) >= len(navigation())
    loaded = r"""<(?:script|link|img|iframe|source)\b[^>]*?\b(?:src|href)=["']?(?:https?:)?//[^"'> ]+"""
    assert [found for page in pages for found in re.findall(loaded, page.read_text())] == []


def test_the_readme_and_the_site_promise_the_same() -> None:
    readme, site = (
        re.findall(r"^\| what fails .*?\n\n", (ROOT / page).read_text(), re.M | re.S)
        for page in ("README.md", "docs/index.md")
    )
    assert readme == site != []


def test_every_module_that_a_page_names_exists() -> None:
    named = {path for page in PAGES for path in re.findall(r"`((?:\w+/)+\w+\.py)`", page.read_text())}
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


def test_the_example_configuration_is_valid() -> None:
    assert load_catalogue(ROOT / "headrace.example.toml").names()


def test_every_demo_model_is_documented() -> None:
    page = (ROOT / "docs/how-to/try-without-an-account.md").read_text()
    assert dict(re.findall(r"^\| `([a-z-]+)` \| (.+) \|$", page, re.M)) == DEMO_MODELS


@pytest.mark.parametrize("table", [support.render_table, responses_support.render_table], ids=["chat", "responses"])
def test_the_tables_of_parameters_are_the_codes(table: Callable[[], str]) -> None:
    assert table() in (ROOT / "docs/reference/parameters.md").read_text()


@pytest.mark.parametrize("form", HANDLINGS)
def test_every_parameter_has_its_handling(form: Format) -> None:
    assert set(ChatRequest.model_fields) - EXTENSIONS <= set(HANDLINGS[form])


def blocks() -> list[tuple[str, str, str]]:
    """Return each code block of each page: the page's name, the language and the code."""
    fence = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```$", re.M | re.S)
    return [
        (page.name, language, textwrap.dedent(code))
        for page in PAGES
        for _, language, code in fence.findall(page.read_text())
    ]


def parse_shell(code: str) -> None:
    checked = subprocess.run(["bash", "-n"], input=code, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


def parse_nginx(code: str) -> None:
    lines = [line.strip() for line in code.splitlines() if line.strip()]
    assert all(line.endswith((";", "{")) or line == "}" for line in lines)
    assert code.count("{") == code.count("}")


def parse_ini(code: str) -> None:
    configparser.ConfigParser(inline_comment_prefixes=";").read_string(code)


# SQL is run by tests/integration/test_docs.py, JavaScript by tests/e2e/clients/test_node.py. A block without a
# language, or of text, shows what something prints.
PARSERS: dict[str, Callable[[str], object]] = {
    "": str,
    "text": str,
    "sql": str,
    "js": str,
    "sh": parse_shell,
    "python": lambda code: compile(code, "page", "exec"),
    "json": json.loads,
    "toml": tomllib.loads,
    "yaml": lambda code: list(yaml.safe_load_all(code)),
    "ini": parse_ini,
    "nginx": parse_nginx,
}


@pytest.mark.parametrize(("page", "language", "code"), blocks(), ids=lambda value: value if len(value) < 40 else "")
def test_a_code_block_parses(page: str, language: str, code: str) -> None:
    PARSERS[language](code)


PODS = [
    (document["metadata"]["name"], document["spec"]["template"]["spec"])
    for page, language, code in blocks()
    if page == "several-hosts.md" and language == "yaml"
    for document in yaml.safe_load_all(code)
]


@pytest.mark.parametrize(("name", "pod"), PODS, ids=[name for name, _ in PODS])
def test_a_pod_has_the_time_to_drain_and_to_leave_its_service_before(name: str, pod: dict[str, Any]) -> None:
    [container] = pod["containers"]
    before = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    assert (before > 0) == (name == "headrace-api"), "the process listens until it gets SIGTERM"
    assert pod["terminationGracePeriodSeconds"] >= before + Settings.model_fields["drain_seconds"].default + 5


def commands() -> set[str]:
    """Return each `headrace …` that a page shows, in a block of commands or in a line of text."""
    found = set()
    for page in PAGES:
        text = page.read_text()
        shown = "\n".join(code for name, language, code in blocks() if name == page.name and language == "sh")
        shown = re.sub(r"\\\n", " ", shown)
        found |= set(re.findall(r"(?:^|[ (/\n])(headrace [a-z-][^\n|#)`]*)", shown))
        found |= {line for line in re.findall(r"`((?:\.venv/bin/)?headrace [a-z-][^`]*)`", text) if "|" not in line}
    return {line.removeprefix(".venv/bin/") for line in found} - {"headrace cli"}  # the name of a session of Postgres


@pytest.mark.parametrize("line", sorted(commands()))
def test_a_command_that_a_page_shows_exists(line: str) -> None:
    kind: click.Command = command
    options: set[str] = {"--help", "--version"}
    words = line.replace("…", " ").split()[1:]
    while words and isinstance(kind, click.Group) and words[0] in kind.list_commands(click.Context(kind)):
        found = kind.get_command(click.Context(kind), words.pop(0))
        assert found is not None
        kind = found
        options |= {option for parameter in kind.params for option in parameter.opts + parameter.secondary_opts}
    assert kind is not command, line
    assert {word.split("=")[0] for word in words if word.startswith("--")} <= options


CONFIGURATIONS = [
    code
    for page, language, code in blocks()
    if page in {"add-a-provider.md", "move-from-litellm.md", "move-from-openai-batches.md"} and language == "toml"
]


@pytest.mark.parametrize("block", CONFIGURATIONS)
def test_the_pages_configurations_are_valid(block: str, tmp_path: Path) -> None:
    path = tmp_path / "headrace.toml"
    path.write_text(block)
    catalogue, problems = read_catalogue(path)
    assert catalogue is not None, problems
    assert all(catalogue.routes(name) for name in catalogue.names())


def test_there_are_as_many_as_there_are_servers() -> None:
    assert len(CONFIGURATIONS) == 11


def test_the_glossary_defines_the_words_of_the_code() -> None:
    defined = set(re.findall(r"^\*\*(.+?)\*\*$", (ROOT / "docs/glossary.md").read_text(), re.M))
    assert {
        *("Claim", "Lease", "Fence", "Wake-up", "Frame", "Segment", "Tally", "Parcel", "Origin", "Attempt", "Route"),
        *("Permit", "Adaptive limit", "Scope", "Agent", "Leader", "Namespace"),
    } <= defined
