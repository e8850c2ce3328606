"""What operators see of a process: its logs."""
