"""What a user's mistake looks like: one line that says what was wrong, what was expected and what to do."""

from __future__ import annotations

# what Ray Data appends to the message of an error in a task: advice on retries
RAY_ADDS = "Failed to apply UDF transform"


class UserError(Exception):
    """Ends the command with its message and exit code 2; anything else that is raised is a fault of ours."""


class Stopped(BaseException):
    """Ends the command with its message and exit code 143, as SIGTERM does: nothing is lost, and nothing was wrong.

    No `Exception`: it is raised from a signal's handler, wherever the program is, and nobody is to catch it there."""


def mistake_in(error: BaseException) -> UserError | None:
    """The user's mistake under what Ray has wrapped around it, if it is one."""
    chain: BaseException | None = error
    while chain is not None:
        # the wrapper is of its class but tells the whole trace, `cause` is the original
        wrapped = getattr(chain, "cause", None)
        if isinstance(chain, UserError) and wrapped is None:
            return chain
        chain = wrapped or chain.__cause__
    return None


def line_of(mistake: UserError) -> str:
    """Its message on one line."""
    return " ".join(str(mistake).split(RAY_ADDS)[0].split())
