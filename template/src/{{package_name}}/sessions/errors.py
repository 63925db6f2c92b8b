"""The errors of this package, and tracebacks without secrets.

Each message says what is wrong and what to do next, and contains no secret. Tools that report errors record local
variables, some of which hold passwords.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from functools import wraps
from importlib.util import find_spec
from typing import Literal, NamedTuple, ParamSpec, TypeVar

COMMAND = __name__.partition(".")[0].replace("_", "-")
"""The command line of this project."""


def how_to(command: str, otherwise: str) -> str:
    """What a message says to do: run a command of this project, or `otherwise` where the commands did not come along.

    Args:
        command: Behind the name of the program, such as "db upgrade".
        otherwise: The same for a codebase that has `sessions/` alone; `{package}` is what it is called there.
    """
    package = __package__ or ""
    above = package.rpartition(".")[0]
    if above and all(find_spec(f"{above}.{module}") for module in ("cli", "conversation")):
        return f"Run `{COMMAND} {command}`"
    return otherwise.format(package=package)


class SessionStoreError(Exception):
    """Something went wrong with stored sessions. The message says what, and what to do next."""


class SettingMissing(SessionStoreError):
    """A setting that the store needs is absent or cannot be read."""


class InvalidSessionId(SessionStoreError, ValueError):
    """A session id or user id that no store could keep faithfully."""


class ItemTooLarge(SessionStoreError, ValueError):
    """An item is larger than `SESSION_MAX_ITEM_BYTES`, or a string in it is; nothing of its batch was stored."""


class WrongOwner(SessionStoreError, PermissionError):
    """A run of one user tried to use the session of another."""


class LeaseLost(SessionStoreError):
    """Another run took the session over, or it was deleted. Nothing was stored."""

    def __init__(self) -> None:
        super().__init__(
            "Another run took this session over, or it was deleted; nothing was stored. Read it again, then try again."
        )


class SchemaOutdated(SessionStoreError):
    """What is stored and this program do not fit together: one of them is too old."""


class WrongKey(SessionStoreError):
    """What is stored is encrypted, and this program does not hold the key."""


class StoreRefused(SessionStoreError):
    """The server answered and will not serve us: password, permission, missing database, full disk."""


class StoreUnavailable(SessionStoreError):
    """The server could not be reached, or went away.

    Args:
        maybe_applied: True when the request may have been carried out although no answer came back.
    """

    def __init__(self, message: str, *, maybe_applied: bool = False) -> None:
        super().__init__(message)
        self.maybe_applied = maybe_applied


T = TypeVar("T")
P = ParamSpec("P")


def forget_locals(error: BaseException) -> None:
    """Empty the frames that an error came through, and those of its causes; files and lines stay.

    Frames that still run keep theirs.
    """
    seen: set[int] = set()
    todo: list[BaseException | None] = [error]
    while todo:
        each = todo.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            traceback.clear_frames(each.__traceback__)
            todo += [each.__cause__, each.__context__]


def forgets_locals(function: Callable[P, T]) -> Callable[P, T]:
    """For a function that is given a secret or reads one: its errors show no local variable, and no argument."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except BaseException as error:
            del args, kwargs
            forget_locals(error)
            raise

    return call


class Check(NamedTuple):
    """One finding: a sentence, and what to do if it is not "ok". Holds no secrets."""

    name: str
    state: Literal["ok", "warn", "fail"]
    says: str
    todo: str = ""
