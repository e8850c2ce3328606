"""What every process needs while it runs."""
