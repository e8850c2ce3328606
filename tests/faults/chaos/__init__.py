"""Everything dies, stalls and comes back under load, for some minutes, and a checker counts what was lost: nothing."""
