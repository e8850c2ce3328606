"""Servers that tests start in place of foreign ones: providers, and receivers of webhooks."""
