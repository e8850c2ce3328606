"""What can go wrong between Headrace and a provider's server, before it is translated to an UpstreamError."""

from __future__ import annotations


class ConnectionFailedError(Exception):
    """There is no connection, or it broke, or what came is no HTTP. The message says which."""


class ConnectionLostError(ConnectionFailedError):
    """The connection ended before the answer did."""


class SilenceError(Exception):
    """No byte came for `seconds`."""

    def __init__(self, seconds: float) -> None:
        """Take the seconds."""
        super().__init__(f"nothing came for {seconds:g} s")
