"""Clients that others wrote, run unmodified against the service: SDKs, agent frameworks and a compliance tester."""
