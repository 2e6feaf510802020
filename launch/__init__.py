"""Plans the memory, operations and traffic of a run, and launches runs and sweeps."""
