"""Idempotency keys: a request that is sent again creates and changes nothing twice."""
