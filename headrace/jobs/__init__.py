"""Jobs: their states, their rows, every statement that writes them, and the job object of the API."""
