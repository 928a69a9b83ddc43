"""Runs the pipeline under injected faults and counts what is lost or done twice, compared with an undisturbed run."""
