"""Limits of keys and accounts, checked before a job is accepted."""
