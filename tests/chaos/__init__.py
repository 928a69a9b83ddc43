"""The pipeline under faults: what is lost, what is done twice, against an undisturbed run."""
