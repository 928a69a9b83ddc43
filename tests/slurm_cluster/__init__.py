"""A real SLURM cluster of several virtual nodes on one machine, for the tests. See `cluster`."""
