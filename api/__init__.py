"""The HTTP process: it commits requests as jobs, wakes workers, and answers clients from the jobs' events."""
