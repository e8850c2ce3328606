"""Webhooks: events of ended jobs and batches, delivered to clients' URLs at least once."""
