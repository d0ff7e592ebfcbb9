"""Errors that a user can mend; the command line prints them without a traceback."""

import contextlib
import sys
from collections.abc import Iterator


class UserError(Exception):
    """What was wrong, where, and what to do about it."""


class Preempted(Exception):
    """SIGTERM arrived; what there was to save is saved."""


@contextlib.contextmanager
def in_one_line() -> Iterator[None]:
    """Ends the process with 1 and one line where a user's error, or the system's, comes up."""
    try:
        yield
    except UserError as error:
        sys.exit(f"lt_jax: {error}")
    except OSError as error:
        sys.exit(f"lt_jax: {error.filename or 'file'}: {error.strerror or error}")
