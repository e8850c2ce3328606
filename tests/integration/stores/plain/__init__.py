"""The connections for plain SQL, on each kind of loop."""
