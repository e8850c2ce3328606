"""The process that repairs, expires, feeds and cleans up. Several may run; one of them acts."""
