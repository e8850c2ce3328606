"""Servers that tests start in place of what is not theirs: providers, and receivers of webhooks."""
