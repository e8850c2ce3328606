"""Connections to providers, with servers on loopback that answer with bytes as a test wants them."""
