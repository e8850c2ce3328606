"""What every request passes: its connection, id, body, authentication, idempotency, pages and event streams."""
