"""Errors that a user can act on, and how any error becomes one line."""

from __future__ import annotations

from collections.abc import Iterator

# Ray Data appends advice on retries to the message of an error in a task
RAY_ADDS = "Failed to apply UDF transform"
# the rest of a library's message is seldom of use on the console; the log has all of it
MAX_CHARS = 500


class UserError(Exception):
    """A mistake that the user can correct. It ends the command with its message on one line and exit code 2."""


class ClusterError(UserError):
    """Ray did not start. It ends the command with exit code 1: the same command may succeed later."""


class Stopped(BaseException):
    """A stop request: it ends the command with its message. The exit code is 130 (SIGINT) or 143 (SIGTERM).

    Nothing is lost. It is no `Exception`, because a signal handler raises it anywhere in the program, and no code may
    swallow it there."""


def causes(error: BaseException, *, contexts: bool = False) -> Iterator[BaseException]:
    """Yield the error and the errors that Ray and others have wrapped in it, from the outermost to the first cause.

    `contexts`: also follow the errors during whose handling another one was raised."""
    one: BaseException | None = error
    seen: set[int] = set()
    while one is not None and id(one) not in seen:
        yield one
        # an error that is raised from its own wrapper leads back to it
        seen.add(id(one))
        # Ray Train reports the failure of each worker; any of them leads to the cause
        failures = getattr(one, "worker_failures", None)
        wrapped = next(iter(failures.values())) if failures else getattr(one, "cause", None)
        one = wrapped or one.__cause__ or (one.__context__ if contexts else None)


def is_ray_wrapper(error: BaseException) -> bool:
    """Return whether Ray made this error around another one: it has the class of the original, which is `cause`."""
    return getattr(error, "cause", None) is not None


def mistake_in(error: BaseException) -> UserError | None:
    """Return the user's mistake inside Ray's wrappers; `None` if the error has another cause."""
    own = (one for one in causes(error) if isinstance(one, UserError) and not is_ray_wrapper(one))
    return next(own, None)


def one_line(error: BaseException) -> str:
    """Return the error's message on one line: a system error's reason, or the class's name if there is no message.

    Messages of libraries are cut after 500 characters, those of `UserError` are not."""
    text = " ".join(str(error).split(RAY_ADDS)[0].split())
    if isinstance(error, UserError):
        return text
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror if error.filename is None else f"{error.strerror}: {error.filename}"
    return text[:MAX_CHARS] or type(error).__name__


def first_line(error: BaseException) -> str:
    """Return the first line of a library's message, for messages that continue with advice of their own."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return line.rstrip(".:") or type(error).__name__
