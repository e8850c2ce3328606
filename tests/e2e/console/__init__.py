"""The console in a real Chromium, as a client of the real service."""
