"""Looking at a run from outside: what SLURM says of its jobs, what it wrote, what they used."""
