"""The catalogue in use, and its replacement while jobs run when the file has changed."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from headrace.catalogue.demo import with_demo
from headrace.catalogue.load import ConfigurationError, load_catalogue
from headrace.catalogue.models import Catalogue

log = logging.getLogger(__name__)


class CatalogueFile:
    """`headrace.toml`, read at the start and at each `reload`."""

    def __init__(self, path: Path | None, *, demo: bool = True) -> None:
        """Load the catalogue, as `load_catalogue` does, and add the demo models if `demo`.

        Raises:
            ConfigurationError: The file is not valid.
        """
        self._path = path
        self._demo = demo
        self.current: Catalogue = self._read()
        self.current.look_up_prices()
        self.changed = asyncio.Event()
        """Set by each `reload` that takes up the file."""

    def reload(self) -> bool:
        """Use the file as it is now. If it is not valid, log why, keep the catalogue in use and return False."""
        try:
            changed = self._read()
        except ConfigurationError as error:
            log.error("kept the configuration in use: %s", error)  # noqa: TRY400  (the message says it all)
            return False
        changed.look_up_prices()
        self.current = changed
        self.changed.set()
        log.info("took up the configuration: %s", ", ".join(self.current.names()))
        return True

    def _read(self) -> Catalogue:
        catalogue = load_catalogue(self._path)
        return with_demo(catalogue) if self._demo else catalogue
