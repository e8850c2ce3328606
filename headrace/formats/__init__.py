"""The wire formats of requests, answers and streams: pure functions without I/O."""
