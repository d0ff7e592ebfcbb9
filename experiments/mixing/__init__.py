"""What the mixing policy is worth: on toy problems, whose best return is known."""
