"""Tasks of one data set from one generator, each with its own adapter."""
