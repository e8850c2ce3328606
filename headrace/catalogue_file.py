"""The catalogue in use, and how a changed file takes its place while jobs run."""

from __future__ import annotations

import logging
from pathlib import Path

from headrace.catalogue import Catalogue, ConfigurationError, load_catalogue

log = logging.getLogger(__name__)


class CatalogueFile:
    """`headrace.toml`, read once, and again whenever it is asked to."""

    def __init__(self, path: Path | None) -> None:
        """Read the file, or what `load_catalogue` takes without one.

        Raises:
            ConfigurationError: It is not valid.
        """
        self._path = path
        self.current: Catalogue = load_catalogue(path)
        self.current.look_up_prices()

    def reload(self) -> bool:
        """Take up the file as it is now, or log what is wrong with it, keep what is in use and return False."""
        try:
            changed = load_catalogue(self._path)
        except ConfigurationError as error:
            log.error("kept the configuration in use: %s", error)  # noqa: TRY400  (the message says it all)
            return False
        changed.look_up_prices()
        self.current = changed
        log.info("took up the configuration: %s", ", ".join(self.current.names()))
        return True
