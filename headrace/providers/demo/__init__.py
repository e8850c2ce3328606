"""The server of the demo models, which a worker runs on loopback."""
