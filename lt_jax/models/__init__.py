"""Networks and their blocks, as Flax Linen modules behind `lt_jax.models.module`."""
