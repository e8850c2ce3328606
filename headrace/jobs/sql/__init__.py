"""Every statement on a job, by who moves it, and the only writers of its state."""
