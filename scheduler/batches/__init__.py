"""The scheduler's work for batches: it validates their input, feeds their lines as jobs, and writes their output."""
