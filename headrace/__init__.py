"""Headrace: a durable queue and gateway for chat completions."""

from importlib.metadata import version

__version__ = version("headrace")
