"""HTTP in, rows and wake-ups out."""
