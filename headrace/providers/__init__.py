"""Calls to providers: the only opener of HTTP to them, their event streams and their batch APIs."""
