"""What a user's mistake looks like: one line that says what was wrong, what was expected and what to do."""

from __future__ import annotations

from collections.abc import Iterator

# what Ray Data appends to the message of an error in a task: advice on retries
RAY_ADDS = "Failed to apply UDF transform"


class UserError(Exception):
    """Ends the command with its message and exit code 2; anything else that is raised is a fault of ours."""


class Stopped(BaseException):
    """Ends the command with its message and exit code 143, as SIGTERM does: nothing is lost, and nothing was wrong.

    No `Exception`: it is raised from a signal's handler, wherever the program is, and nobody is to catch it there."""


def causes(error: BaseException, *, contexts: bool = False) -> Iterator[BaseException]:
    """The error and, one after the other, what Ray and others have wrapped in it, down to what began it; with
    `contexts` also what it was raised in the handling of."""
    one: BaseException | None = error
    while one is not None:
        yield one
        # Ray Train tells each worker's failure; one of them is the cause of the others
        failures = getattr(one, "worker_failures", None)
        wrapped = next(iter(failures.values())) if failures else getattr(one, "cause", None)
        one = wrapped or one.__cause__ or (one.__context__ if contexts else None)


def mistake_in(error: BaseException) -> UserError | None:
    """The user's mistake under what Ray has wrapped around it, if it is one."""
    # Ray's wrapper is of its class but tells the whole trace, `cause` is the original
    own = (one for one in causes(error) if isinstance(one, UserError) and getattr(one, "cause", None) is None)
    return next(own, None)


def line_of(mistake: UserError) -> str:
    """Its message on one line."""
    return " ".join(str(mistake).split(RAY_ADDS)[0].split())
