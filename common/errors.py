"""The errors that a user can cause, each with the exit code that scripts return for it.

Every message is one line: what, where, what was found, what was expected, what to do next.
Anything else that escapes is a bug, keeps its traceback and exits with 1.
"""

from __future__ import annotations

EXIT_DONE = 0
EXIT_BUG = 1
EXIT_USAGE = 2
EXIT_DATA = 3
EXIT_DIVERGED = 4
EXIT_STOPPED_EARLY = 75
EXIT_INTERRUPTED = 130
EXIT_LEFT_OUT = 77  # of a benchmark that has nothing to measure on this machine


class StrataError(Exception):
    """Base of the errors that end a script with one line instead of a traceback."""

    exit_code = EXIT_BUG
    shared = False  # True when every rank raises the same, so that one of them speaks for all

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(_original(message).split()))


def _original(message: str) -> str:
    """Return what a loader worker said, without the traceback that DataLoader wraps around it."""
    if message.startswith("Caught ") and "Original Traceback" in message:
        return message.rstrip().splitlines()[-1].partition(": ")[2]
    return message


class UserError(StrataError):
    """Wrong usage: a flag, a path to write to, a combination that cannot work (exit code 2)."""

    exit_code = EXIT_USAGE


class DataError(StrataError):
    """Bad data or a bad checkpoint (exit code 3)."""

    exit_code = EXIT_DATA


class DivergedError(StrataError):
    """Training became non-finite (exit code 4)."""

    exit_code = EXIT_DIVERGED


def missing_library(name: str, purpose: str, pip_name: str | None = None) -> UserError:
    """Return the error for an optional library that is not installed, with the command that installs it."""
    return UserError(f"{purpose} needs {name}, which is not installed; run: pip install {pip_name or name}")
