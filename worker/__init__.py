"""The process that runs jobs: wake-ups come in, and deltas and ends of jobs go out."""
