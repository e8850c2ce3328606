"""What people write instead of a batch: the official `openai` client, 64 requests in flight, nothing durable.

`python -m bench.bare PORT INPUT OUTPUT` asks the upstream for every line of an input, and prints the seconds it took.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

import openai

IN_FLIGHT = 64


async def run(port: int, lines: Iterable[dict[str, Any]], output: TextIO) -> None:
    """Write the answer of every line to `output`."""
    slots = asyncio.Semaphore(IN_FLIGHT)
    async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="sk-upstream") as client:

        async def answer(line: dict[str, Any]) -> None:
            async with slots:
                completion = await client.chat.completions.create(**line["body"])
            output.write(json.dumps({"custom_id": line["custom_id"], "body": completion.model_dump()}) + "\n")

        await asyncio.gather(*(answer(line) for line in lines))


def main(port: int, source: Path, target: Path) -> float:
    """Answer every line of `source` into `target`; returns the seconds that it took."""
    began = time.monotonic()
    with source.open() as lines, target.open("w") as output:
        asyncio.run(run(port, map(json.loads, lines), output))
    return time.monotonic() - began


if __name__ == "__main__":
    print(main(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])))
