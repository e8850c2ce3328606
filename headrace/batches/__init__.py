"""Batches: thousands of requests in a file, each run as a job, and their answers in files again."""
