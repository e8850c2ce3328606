"""Headrace: a durable queue and gateway for LLM completions."""

from importlib.metadata import version
from pathlib import Path

__version__ = version("headrace")

_INSTALLED = Path(__file__).parent / "_parts"

PARTS = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).parents[1]
"""The folder of the processes and `migrations`: inside this package in a wheel, beside it in a checkout."""
