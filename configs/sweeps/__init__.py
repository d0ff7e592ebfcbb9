"""Sweeps, each a file with a function `get_sweep`."""
