"""Webhooks: who asked to be told of an end is told, at least once, however long that takes."""
