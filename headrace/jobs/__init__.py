"""Jobs: their states, their rows and every statement on them."""
