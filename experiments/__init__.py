"""Measurements of lt_jax, each with its command, predictions and results. lt_jax imports none."""
