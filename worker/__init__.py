"""Wake-ups in, deltas and transitions out: the worker that runs jobs, and the scheduler that looks after them."""
