"""Curves over the number of real and of generated images."""
