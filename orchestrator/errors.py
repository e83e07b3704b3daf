"""What a user's mistake looks like: one line that says what was wrong, what was expected and what to do."""

from __future__ import annotations


class UserError(Exception):
    """Ends the command with its message and exit code 2; anything else that is raised is a fault of ours."""


class Stopped(BaseException):
    """Ends the command with its message and exit code 143, as SIGTERM does: nothing is lost, and nothing was wrong.

    No `Exception`: it is raised from a signal's handler, wherever the program is, and nobody is to catch it there."""
