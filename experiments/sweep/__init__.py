"""Sweeps: many runs of one config, on one machine or on Slurm."""
