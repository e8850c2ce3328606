"""Headrace measured beside its peers, in one run, on one machine. See `bench.__main__` for how."""
