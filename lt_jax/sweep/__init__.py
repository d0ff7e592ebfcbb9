"""Many runs of one config: what is varied, facts on disk, executors, search, comparison.

Light on purpose: jobs of a scheduler import it before anything else.
"""
