"""Which synthetic images are kept: out-of-distribution scores, calibration, gates."""
