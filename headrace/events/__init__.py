"""A job's events on their way from its worker to its readers."""
