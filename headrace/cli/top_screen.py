"""The picture of `headrace top`: a status as tables that fit a terminal, in one column or two."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from headrace.cli.batch_progress import duration
from headrace.cli.printing import cell

Json = Mapping[str, Any]

# Columns from which the tables stand side by side, and columns from which each shows all of its columns.
_TWO_COLUMNS = 150
_ROOMY = 120
# Lines of the head and the foot, with a blank line each.
_FRAME_LINES = 5
# Seconds that a queue's oldest job has waited when it is marked.
_LATE_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class _Column:
    title: str
    value: Callable[[Json], object]
    roomy: bool = False
    """Whether only a wide table shows it."""
    right: bool = True
    rest: bool = False
    """Whether it takes the width that the others leave, and is cut where they leave too little."""
    style: Callable[[Json], str] = field(default=lambda _: "")


@dataclass(slots=True)
class _Section:
    """One table. The first column's title names it."""

    columns: Sequence[_Column]
    rows: Sequence[Json] | None
    """None while the store that holds them is unavailable."""
    whole: bool = False
    """Whether it is never cut."""
    shown: int = 0

    @property
    def lines(self) -> int:
        """Lines that all of its rows take, without its head."""
        return max(1, len(self.rows or ()))

    def render(self, width: int) -> Table:
        """Return the table, with as many rows as it may show."""
        columns = [column for column in self.columns if width >= _ROOMY or not column.roomy]
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold cyan", expand=True)
        for column in columns:
            table.add_column(
                column.title,
                justify="right" if column.right else "left",
                no_wrap=True,
                overflow="ellipsis",
                ratio=1 if column.rest else None,
            )
        rows = self.rows or ()
        cut = len(rows) > self.shown
        for row in rows[: self.shown - 1] if cut else rows:
            cells = [(cell(_text(column.value(row))), column.style(row)) for column in columns]
            table.add_row(*(Text.styled(text.plain, style) for text, style in cells))
        if cut:
            table.add_row(Text(f"… {len(rows) - self.shown + 1} more", "dim"))
        elif not rows:
            table.add_row(Text("unavailable" if self.rows is None else "none", "dim"))
        return table


def render(status: Json, *, width: int, height: int, note: str) -> RenderableType:
    """Return a picture of a status that fits so many columns and lines; `note` is what is wrong with the API."""
    now = status["at"]
    queues, providers, workers, batches, jobs = (
        _Section(_QUEUES, status["queues"], whole=True),
        _Section(_PROVIDERS, sorted(status["providers"], key=_trouble)),
        _Section(_WORKERS, _busiest(status["workers"])),
        _Section(_BATCHES, status["batches"]),
        _Section(_jobs(now), status["slowest_jobs"]),
    )
    room = height - _FRAME_LINES
    body: RenderableType
    if width >= _TWO_COLUMNS:
        half = (width - 3) // 2
        body = Table.grid(padding=(0, 3, 0, 0), expand=True)
        body.add_column(ratio=1)
        body.add_column(ratio=1)
        body.add_row(_stack([queues, workers, batches], half, room), _stack([providers, jobs], half, room))
    else:
        body = _stack([queues, providers, workers, jobs, batches], width, room)
    foot = Text(note, "bold red") if note else Text("q quits", "dim")
    foot.truncate(width, overflow="ellipsis")
    return Group(_head(status, width), _rates(status["rates"], width), Text(), body, Text(), foot)


def _stack(sections: Sequence[_Section], width: int, room: int) -> Group:
    """Return tables one below the other, with the longest cut until all of them fit so many lines."""
    for section in sections:
        section.shown = section.lines
    blank = sum(section.lines + 2 for section in sections) - 1 <= room
    room -= len(sections) + (len(sections) - 1 if blank else 0)
    cut = [section for section in sections if not section.whole]
    while sum(section.shown for section in sections) > room and any(section.shown > 1 for section in cut):
        max(cut, key=lambda section: section.shown).shown -= 1
    parts: list[RenderableType] = []
    for section in sections:
        if parts and blank:
            parts.append(Text())
        parts.append(section.render(width))
    return Group(*parts)


def _head(status: Json, width: int) -> Text:
    at = datetime.fromtimestamp(status["at"], UTC).astimezone()
    text = Text.assemble((f"Headrace {status['version']}", "bold"), f"  {at:%H:%M:%S}")
    for store, state in status["stores"].items():
        text.append(f"  {store} ")
        text.append(state, "green" if state == "ok" else "bold red")
    scheduler = status["scheduler"]
    if scheduler is not None:
        text.append("  scheduler ")
        text.append(cell(scheduler["leader"]) if scheduler["leader"] else Text("none leads", "bold red"))
    text.truncate(width, overflow="ellipsis")
    return text


def _rates(rates: Json | None, width: int) -> Text:
    if rates is None:
        return Text("rates unavailable", "dim")
    seconds = rates["seconds"]
    text = Text(f"5 min: {rates['submitted'] / seconds:,.1f} jobs/s in, {rates['completed'] / seconds:,.1f} completed")
    for kind in ("failed", "expired", "cancelled"):
        if rates[kind]:
            text.append(f", {rates[kind]:,} {kind}", "red" if kind != "cancelled" else "")
    tokens = (rates["input_tokens"] + rates["output_tokens"]) / seconds
    text.append(f"  {tokens:,.0f} tokens/s  {rates['cost'] * 3600 / seconds:,.2f} USD/h")
    text.truncate(width, overflow="ellipsis")
    return text


def _text(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _trouble(provider: Json) -> tuple[int, int, str]:
    """Return by what providers are sorted: those in trouble first, then the busiest."""
    rank = {"open": 0, "probing": 1}.get(provider["circuit"], 3)
    if rank == 3 and (provider["failing_on"] or provider["open_accounts"] or provider["paused_for"]):
        rank = 2
    return rank, -(provider["calls"] or 0), provider["name"]


def _busiest(workers: Sequence[Json] | None) -> Sequence[Json] | None:
    return workers and sorted(workers, key=lambda worker: (-(worker["running"] or 0), worker["host"], worker["pid"]))


def _limits(provider: Json) -> str:
    names = {"max_concurrency": "at once", "requests_per_minute": "rpm", "tokens_per_minute": "tpm"}
    told = [f"{_short(provider['limits'][name])} {unit}" for name, unit in names.items() if provider["limits"][name]]
    return ", ".join(told) or "-"


def _short(number: int) -> str:
    """Return a number in few digits, such as `2M`, `30k` or `600`."""
    for size, unit in ((1_000_000, "M"), (1_000, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number)


def _circuit(provider: Json) -> str:
    state = provider["circuit"]
    if state == "open":
        return f"open on {provider['open_on']}"
    if provider["paused_for"]:
        return f"paused {duration(provider['paused_for'])}"
    if state == "closed" and provider["open_accounts"]:
        return f"open for {provider['open_accounts']} acct"
    return state or "-"


def _circuit_style(provider: Json) -> str:
    return {0: "bold red", 1: "yellow", 2: "yellow"}.get(_trouble(provider)[0], "green")


def _done(batch: Json) -> str:
    counts = batch["request_counts"]
    return f"{counts['completed']:,}/{counts['total']:,}"


def _left(batch: Json) -> str | None:
    return None if batch["seconds_left"] is None else duration(batch["seconds_left"])


_QUEUES = (
    _Column("QUEUE", lambda queue: queue["tier"], right=False, rest=True),
    _Column("queued", lambda queue: f"{queue['queued']:,}{'' if queue['exact'] else '+'}"),
    _Column("running", lambda queue: queue["running"]),
    _Column(
        "oldest",
        lambda queue: duration(queue["oldest_seconds"]),
        style=lambda queue: "yellow" if queue["oldest_seconds"] > _LATE_SECONDS else "",
    ),
)
_PROVIDERS = (
    _Column("PROVIDER", lambda provider: provider["name"], right=False, rest=True),
    _Column("circuit", _circuit, right=False, style=_circuit_style),
    _Column("running", lambda provider: provider["running"]),
    _Column("calls", lambda provider: provider["calls"]),
    _Column("errors", lambda provider: provider["errors"], style=lambda provider: "red" if provider["errors"] else ""),
    _Column("limits", _limits, right=False),
)
_WORKERS = (
    _Column("WORKER", lambda worker: f"{worker['host']}:{worker['pid']}", right=False, rest=True),
    _Column("slots", lambda worker: f"{_text(worker['running'])}/{_text(worker['slots'])}"),
    _Column(
        "state",
        lambda worker: "draining" if worker["draining"] else "serving",
        right=False,
        style=lambda worker: "yellow" if worker["draining"] else "green",
    ),
    _Column("tiers", lambda worker: ",".join(worker["tiers"]), right=False),
    _Column("version", lambda worker: worker["version"], roomy=True),
)
_BATCHES = (
    _Column("BATCH", lambda batch: batch["id"], right=False),
    _Column("status", lambda batch: batch["status"], right=False, rest=True),
    _Column("done", _done),
    _Column(
        "failed",
        lambda batch: batch["request_counts"]["failed"],
        style=lambda batch: "red" if batch["request_counts"]["failed"] else "",
    ),
    _Column("per s", lambda batch: f"{batch['requests_per_second']:,.1f}", roomy=True),
    _Column("left", _left, roomy=True),
    _Column("USD", lambda batch: batch["cost"], roomy=True),
)


def _jobs(now: float) -> Sequence[_Column]:
    return (
        _Column("JOB", lambda job: job["id"], right=False),
        _Column("model", lambda job: job["model"], right=False, rest=True),
        _Column("tier", lambda job: job["tier"], right=False),
        _Column("attempt", lambda job: job["attempts"]),
        _Column("running", lambda job: duration(now - job["started_at"])),
        _Column("account", lambda job: job["account_id"], roomy=True, right=False),
    )
