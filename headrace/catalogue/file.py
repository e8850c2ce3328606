"""The catalogue in use, and how a changed file takes its place while jobs run."""

from __future__ import annotations

import logging
from pathlib import Path

from headrace.catalogue.demo import with_demo
from headrace.catalogue.load import ConfigurationError, load_catalogue
from headrace.catalogue.models import Catalogue

log = logging.getLogger(__name__)


class CatalogueFile:
    """`headrace.toml`, read once, and again whenever it is asked to."""

    def __init__(self, path: Path | None, *, demo: bool = True) -> None:
        """Read the file, or what `load_catalogue` takes without one, and add the demo models if `demo`.

        Raises:
            ConfigurationError: It is not valid.
        """
        self._path = path
        self._demo = demo
        self.current: Catalogue = self._read()
        self.current.look_up_prices()

    def reload(self) -> bool:
        """Take up the file as it is now, or log what is wrong with it, keep what is in use and return False."""
        try:
            changed = self._read()
        except ConfigurationError as error:
            log.error("kept the configuration in use: %s", error)  # noqa: TRY400  (the message says it all)
            return False
        changed.look_up_prices()
        self.current = changed
        log.info("took up the configuration: %s", ", ".join(self.current.names()))
        return True

    def _read(self) -> Catalogue:
        catalogue = load_catalogue(self._path)
        return with_demo(catalogue) if self._demo else catalogue
