"""What runs: the stages in order, the run directory, the shard loop, configuration, status. Knows slurm, data_prep, vqa."""
