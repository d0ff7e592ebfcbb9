"""How much synthetic data each class gets, before each round of classifier steps."""
