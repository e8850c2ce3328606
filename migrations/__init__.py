"""Alembic's migrations: `headrace migrate` runs them."""
