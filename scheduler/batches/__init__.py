"""What the scheduler does for batches: it checks their input, makes jobs of their lines, and writes their output."""
