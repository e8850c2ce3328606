"""The neutral chat vocabulary: what a request, a completion, its chunks and its usage are. No I/O, no provider."""
