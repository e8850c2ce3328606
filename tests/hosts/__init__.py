"""The service on several hosts, which are network namespaces: partitions, a lost host, a failover, and a count."""
