"""What operators see of a process: its logs, its metrics, its health and its traces."""
