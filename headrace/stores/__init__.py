"""Postgres and Redis: connections, URLs, the schema's revision, group commits."""
