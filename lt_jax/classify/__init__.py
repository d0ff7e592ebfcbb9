"""The classifier: losses for long tails, training on mixed batches, prediction."""
