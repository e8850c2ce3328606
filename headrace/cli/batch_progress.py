"""How far a batch is: bars in a terminal, and lines of text."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, Task, TextColumn, TransferSpeedColumn
from rich.table import Column
from rich.text import Text

from headrace.cli.batch_client import BatchClient


class _SpeedColumn(TransferSpeedColumn):
    """The speed of an upload, empty until it is known; a small file is sent before that."""

    def render(self, task: Task) -> Text:
        return Text() if task.finished_speed is None and task.speed is None else super().render(task)


def bars(*, hidden: bool = False) -> Console:
    """Return the console for bars: standard error if that is a terminal, else one that shows nothing."""
    console = Console(stderr=True, highlight=False)
    return console if console.is_terminal and not hidden else Console(quiet=True)


def upload(client: BatchClient, path: Path, name: str, console: Console) -> str:
    """Upload a batch's input under a bar, and return the file's id."""
    columns = (TextColumn("Uploading"), BarColumn(), DownloadColumn(), _SpeedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=path.stat().st_size)
        return client.upload(path, name, lambda read: progress.update(task, completed=read))


def watch(client: BatchClient, batch_id: str, console: Console) -> dict[str, Any]:
    """Show a bar for a batch until it has ended, and return the batch."""
    last: dict[str, Any] = {}
    columns = (
        TextColumn("{task.fields[status]}"),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[progress]}", table_column=Column(no_wrap=True)),
    )
    with Progress(*columns, console=console, expand=True) as progress:
        task = progress.add_task("", total=None, status="", progress="")
        for last in client.watch(batch_id):
            counts = last["request_counts"]
            progress.update(
                task,
                total=counts["total"] or None,
                completed=counts["completed"] + counts["failed"],
                status=last["status"],
                progress=progress_text(last),
            )
    return last


def progress_text(progress: dict[str, Any]) -> str:
    """Return the text beside a batch's bar: counts, pace, cost and the time left."""
    counts = progress["request_counts"]
    ended = counts["completed"] + counts["failed"]
    parts = [f"{counts['completed']:,}/{counts['total']:,}"]
    if counts["failed"]:
        parts.append(f"{counts['failed']:,} failed")
    if pace := progress.get("requests_per_second"):
        parts += [f"{pace:,.0f} req/s", f"{progress['tokens_per_second']:,.0f} tok/s"]
    if (cost := progress.get("cost")) is not None and ended:
        spent = Decimal(cost)
        whole = spent / ended * counts["total"]
        parts.append(f"{spent:.4f} USD" if ended == counts["total"] else f"{spent:.4f} of about {whole:.4f} USD")
    if (seconds := progress.get("seconds_left")) is not None:
        parts.append(f"{duration(seconds)} left")
    return " · ".join(parts)


def summary(found: dict[str, Any]) -> str:
    """Return a line with a batch's status, counts, tokens and cost."""
    counts, usage = found["request_counts"], found["usage"]
    end = next((found[name] for name in ("completed_at", "expired_at", "cancelled_at") if found[name]), None)
    seconds = f" in {duration(end - found['created_at'])}" if end else ""
    cost = f", {found['cost']} USD" if found["cost"] is not None else ""
    return (
        f"{found['id']} {found['status']}{seconds}: {counts['completed']:,} of {counts['total']:,} answered, "
        f"{counts['failed']:,} failed; {usage['input_tokens']:,} tokens in, {usage['output_tokens']:,} out{cost}"
    )


def duration(seconds: float) -> str:
    """Return a duration such as `2 h 5 min`, `3 min 20 s` or `4 s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
