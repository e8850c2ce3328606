"""What a development machine needs: embedded stores and supervised child processes."""
