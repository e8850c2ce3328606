"""Everything dies, stalls and comes back under load, for some minutes, and a checker finds that nothing was lost."""
