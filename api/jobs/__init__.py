"""From a request to a committed job, and from the job's events back to its client."""
