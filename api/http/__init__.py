"""Parts that serve every resource: connections, request ids, authentication, bodies, idempotency, pages, streams."""
