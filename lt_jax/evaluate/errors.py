"""What in predictions, labels and settings keeps them from being evaluated."""

from lt_jax.errors import UserError


class EvaluationError(UserError, ValueError):
    """Predictions, labels or settings that cannot be evaluated; says which and what to do."""
