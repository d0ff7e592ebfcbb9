"""Lesion detection: targets, losses, decoding, training, prediction."""
