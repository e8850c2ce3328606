"""Embedded stores, and child processes under supervision: what `headrace dev` and the tests run."""
