"""How well out-of-distribution scores tell bad images, and what selection by them is worth."""
