"""Write the pages of docs/reference that are made from code: `make reference`. A test compares them with the code.

* settings.md from `headrace.settings`
* errors.md from `headrace.errors`, and from the codes that errors are raised with
* cli.md from the commands
* metrics.md from `headrace.telemetry.metrics`
* http.md from the OpenAPI document
* openapi.json, which is that document, so that a change of the HTTP API shows in a review
"""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import annotated_types
import click
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

import headrace.errors
from api.app import create_app
from headrace.cli import main as command
from headrace.errors import HeadraceError
from headrace.settings import Settings
from headrace.telemetry.metrics import METRICS, Metric

DOCS = Path(__file__).resolve().parent
SOURCES = ("api", "headrace", "scheduler", "worker")
METHODS = ("get", "post", "put", "patch", "delete")


def pages() -> dict[Path, str]:
    """Return the text of each generated page by its path."""
    reference = DOCS / "reference"
    return {
        reference / "settings.md": settings_page(),
        reference / "errors.md": errors_page(),
        reference / "cli.md": cli_page(),
        reference / "metrics.md": metrics_page(),
        reference / "http.md": http_page(document := openapi_document()),
        reference / "openapi.json": json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n",
    }


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """Return a Markdown table. A `|` inside a cell is escaped."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


# Settings


def settings_page() -> str:
    """Return a section for each variable: its name, default, bounds and description."""
    sections = "\n".join(setting_section(name, field) for name, field in Settings.model_fields.items())
    return f"""# Settings

Every process reads its settings from environment variables when it starts. A value that is not valid ends the process
with exit code 2 and one line that names the variable. An empty variable counts as unset. Models and providers are not
settings: [`headrace.toml`](configuration.md) has them.

Where there is no `headrace.toml`, a process also looks for the keys of three providers and serves the current models of
those that are set: `OPENAI_API_KEY`, `ANTHROPIC_API_KEY` and `GEMINI_API_KEY`. `headrace batch` is a client of the API.
It reads `HEADRACE_URL` and `HEADRACE_API_KEY`.

OpenTelemetry's `OTEL_*` variables configure [traces](../how-to/trace.md).

This page is made from `headrace/settings.py` by `make reference`.

{sections}"""


def setting_section(name: str, field: FieldInfo) -> str:
    """Return what there is to know about one variable."""
    allowed = bounds(field)
    facts = f"Default: {default(field) or 'unset'}" + (f" · allowed: {allowed}" if allowed else "")
    return f"## `{variable(name)}`\n\n{facts}\n\n{field.description}\n"


def variable(name: str) -> str:
    """Return the name of the environment variable of a setting."""
    return str(Settings.model_fields[name].validation_alias or f"HEADRACE_{name.upper()}")


def default(field: FieldInfo) -> str:
    """Return a setting's default as it is written in the environment."""
    if field.default_factory is not None:
        return "`~/.local/share/headrace`; for root `/var/lib/headrace`"
    return "" if field.default in (None, "", [], PydanticUndefined) else f"`{field.default}`"


def bounds(field: FieldInfo) -> str:
    """Return which values a setting may have, as its annotation and its constraints say."""
    if get_origin(field.annotation) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(field.annotation))
    if field.annotation is bool:
        return "`true`, `false`"
    said = []
    for rule in field.metadata:
        match rule:
            case annotated_types.Ge(ge=bound):
                said.append(f"≥ {bound}")
            case annotated_types.Gt(gt=bound):
                said.append(f"> {bound}")
            case annotated_types.Le(le=bound):
                said.append(f"≤ {bound}")
            case annotated_types.MinLen(min_length=bound):
                said.append(f"at least {bound} characters")
            case annotated_types.MaxLen(max_length=bound):
                said.append(f"at most {bound} values")
            case _:
                pass
    return ", ".join(said)


# Errors


def errors_page() -> str:
    """Return the tree of error classes, and the codes that errors are raised with."""
    classes = [
        (
            f"{'→ ' * depth}`{kind.__name__}`",
            str(kind.status),
            f"`{kind.type}`" + (f" `{kind.code}`" if kind.code else ""),
            "yes" if kind.retryable else "no",
            sentence(kind),
        )
        for kind, depth in tree(HeadraceError)
    ]
    codes = [(f"`{code}`", kinds) for code, kinds in sorted(raised().items())]
    return f"""# Errors

An error's body is OpenAI's: `{{"error": {{"message", "type", "param", "code"}}}}`. `param` is the path of
the field that is wrong. Clients made for OpenAI raise their own exceptions for these. [The API](api.md#errors) lists
each status and code with the situation behind it.

This page is made from `headrace/errors.py` by `make reference`.

## Kinds

An arrow marks a special case of the kind above it. *Retry* says whether the worker calls the provider again, and
whether a client may send the same request again.

{table(("kind", "status", "type, code", "retry", "meaning"), classes)}
## Codes of single situations

These codes replace the code of the kind, so that a program can tell the situation.

{table(("code", "kind"), codes)}
A refusal of a provider carries the provider's own code.
"""


def tree(kind: type[HeadraceError], depth: int = 0) -> Iterator[tuple[type[HeadraceError], int]]:
    """Yield an error class and its subclasses of `headrace.errors`, each with its depth."""
    yield kind, depth
    for special in kind.__subclasses__():
        if special.__module__ == headrace.errors.__name__:
            yield from tree(special, depth + 1)


def sentence(thing: object) -> str:
    """Return the first line of a docstring."""
    return (inspect.getdoc(thing) or "").partition("\n")[0]


def raised() -> dict[str, str]:
    """Return each code that stands in a call of an error's class, with the names of those classes."""
    found: dict[str, set[str]] = {"invalid_value": {"`InvalidRequestError`"}}  # the default of `invalid_parameter`
    for path in sorted(path for source in SOURCES for path in (DOCS.parent / source).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func).split(".")[-1].replace("invalid_parameter", "InvalidRequestError")
            if name.endswith("Error"):
                for keyword in node.keywords:
                    match keyword:
                        case ast.keyword(arg="code", value=ast.Constant(value=str(code))):
                            found.setdefault(code, set()).add(f"`{name}`")
    return {code: ", ".join(sorted(names)) for code, names in found.items()}


# The command line


def cli_page() -> str:
    """Return the usage, help and options of every command."""
    context = click.Context(command, info_name="headrace")
    sections = "\n".join(described(command, context))
    return f"""# Command line

In a checkout the command is `.venv/bin/headrace`. Every command explains itself with `--help`, and commands that
print data print JSON with `--json`.

This page is made from the commands by `make reference`.

{sections}"""


def described(kind: click.Command, context: click.Context) -> Iterator[str]:
    """Yield a command's section and those of its subcommands."""
    if context.parent is not None:
        yield f"## `{context.command_path}`\n"
    yield (inspect.cleandoc(kind.help or "").replace("\b", "")) + "\n"
    usage = " ".join([context.command_path, *kind.collect_usage_pieces(context)])
    yield f"```\n{usage}\n```\n"
    options = [record for parameter in kind.params if (record := parameter.get_help_record(context))]
    if options:
        yield table(("option", "meaning"), [(f"`{name}`", text) for name, text in options])
    if isinstance(kind, click.Group):
        for name in kind.list_commands(context):
            child = kind.get_command(context, name)
            assert child is not None
            yield from described(child, click.Context(child, info_name=name, parent=context))


# Metrics


def metrics_page() -> str:
    """Return a section for each metric: what it counts, by which labels, in which process, and what to watch."""
    rows = [
        (f"[`{metric.name}`](#{metric.name})", metric.kind, metric.unit, ", ".join(metric.parts)) for metric in METRICS
    ]
    sections = "\n".join(metric_section(metric) for metric in METRICS)
    return f"""# Metrics

Each process counts for itself; sums over all instances are Prometheus's work. A process serves its metrics on
`HEADRACE_METRICS_PORT`, and the API also at `GET /metrics` to a key with the scope `metrics:read`.
[Monitor it](../how-to/monitor.md) shows how to scrape them.

Labels have few values: states, tiers, formats, the API's routes, and the providers, models and routes of
`headrace.toml`. A model that the file does not name, as one that fits a glob, is `other`. No label names an account, a
key or a user. A process also serves `process_*`, such as `process_resident_memory_bytes` and
`process_cpu_seconds_total`.

This page is made from `headrace/telemetry/metrics.py` by `make reference`.

{table(("metric", "type", "unit", "of"), rows)}
{sections}"""


def metric_section(metric: Metric) -> str:
    """Return what there is to know about one metric."""
    labels = ", ".join(f"`{label}`" for label in metric.labels) or "none"
    return f"## `{metric.name}`\n\n{metric.help}\n\nLabels: {labels}. Watch: {metric.watch}\n"


# HTTP


def openapi_document() -> dict[str, Any]:
    """Return the OpenAPI document that a running API serves at `/openapi.json`."""
    return create_app(Settings.model_construct()).openapi()


def http_page(document: Mapping[str, Any]) -> str:
    """Return every operation of the OpenAPI document, then every schema that they use."""
    operations = [
        (path.removeprefix("/api/v1"), method, document["paths"][path][method])
        for path in document["paths"]
        for method in METHODS
        if method in document["paths"][path]
    ]
    groups: dict[str, list[str]] = {}
    for path, method, operation in operations:
        groups.setdefault(operation.get("tags", ["Service"])[0], []).append(operation_section(path, method, operation))
    body = "\n".join(f"## {name.capitalize()}\n\n" + "\n".join(sections) for name, sections in groups.items())
    schemas = document["components"]["schemas"]
    types = "\n".join(schema_section(name, schemas[name]) for name in sorted(schemas))
    return f"""# HTTP operations and types

Every operation of the HTTP API, with its parameters, bodies and answers. [The API](api.md) explains them with examples.
Paths are below `/api/v1` and `/v1`. A running API serves the same document at `/openapi.json`, and
[openapi.json](openapi.json) is a copy.

This page is made from the OpenAPI document by `make reference`.

{body}
## Types

{types}"""


def operation_section(path: str, method: str, operation: Mapping[str, Any]) -> str:
    """Return one operation: what it does, its parameters, its body and its answers."""
    parts = [f"### `{method.upper()} {path}`\n", (operation.get("description") or operation.get("summary", "")) + "\n"]
    parameters = [
        (
            f"`{parameter['name']}`",
            parameter["in"] + (", required" if parameter.get("required") else ""),
            type_of(parameter.get("schema", {})),
            parameter.get("description", ""),
        )
        for parameter in operation.get("parameters", [])
    ]
    if parameters:
        parts.append(table(("parameter", "in", "type", "meaning"), parameters))
    for media, content in operation.get("requestBody", {}).get("content", {}).items():
        parts.append(f"Body, `{media}`: {type_of(content.get('schema', {}))}\n")
    answers = [
        (
            status,
            "; ".join(
                f"`{media}` {type_of(content.get('schema', {}))}"
                for media, content in answer.get("content", {}).items()
            ),
            answer.get("description", "").replace("Successful Response", ""),  # FastAPI's own words
        )
        for status, answer in operation["responses"].items()
        if status[0] not in "45" or status == "default"
    ]
    errors = sorted(status for status in operation["responses"] if status[0] in "45")
    parts.append(table(("status", "body", "meaning"), answers))
    if errors:
        parts.append(f"Errors: {', '.join(errors)}, as {type_of({'$ref': '#/components/schemas/ErrorResponse'})}.\n")
    return "\n".join(parts)


def schema_section(name: str, schema: Mapping[str, Any]) -> str:
    """Return one type: its description, and its fields if it is an object."""
    parts = [f"### {name}\n"]
    if text := schema.get("description"):
        parts.append(one_line(text) + "\n")
    required = schema.get("required", [])
    fields = [
        (
            f"`{field}`" + (" (required)" if field in required else ""),
            type_of(value),
            one_line(value.get("description", "")),
        )
        for field, value in schema.get("properties", {}).items()
    ]
    parts.append(table(("field", "type", "meaning"), fields) if fields else type_of(schema) + "\n")
    return "\n".join(parts)


def one_line(text: str) -> str:
    """Return a description as one line of Markdown."""
    return " ".join(text.split())


def type_of(schema: Mapping[str, Any]) -> str:
    """Return a JSON schema as a short phrase with links to named types."""
    if reference := schema.get("$ref"):
        name = reference.rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    for union in ("anyOf", "oneOf", "allOf"):
        if union in schema:
            return " or ".join(dict.fromkeys(type_of(option) for option in schema[union]))
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    if "enum" in schema:
        return " or ".join(f"`{json.dumps(value)}`" for value in schema["enum"])
    kind = schema.get("type", "any")
    if kind == "array":
        items = type_of(schema.get("items", {}))
        return f"array of ({items})" if " or " in items else f"array of {items}"
    limits = [
        f"{sign} {schema[word]}"
        for word, sign in {
            "minimum": "≥",
            "exclusiveMinimum": ">",
            "maximum": "≤",
            "minLength": "length ≥",
            "maxLength": "length ≤",
        }.items()
        if word in schema
    ]
    kinds = kind if isinstance(kind, str) else " or ".join(kind)
    return kinds + (f" ({', '.join(limits)})" if limits else "")


if __name__ == "__main__":
    for page, text in pages().items():
        page.write_text(text)
