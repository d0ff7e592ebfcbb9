"""Errors that a user can mend; the command line prints them without a traceback."""


class UserError(Exception):
    """What was wrong, where, and what to do about it."""
