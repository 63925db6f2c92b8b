"""The errors of this package. Each message says what is wrong and what to do next, and contains no secret."""

from __future__ import annotations

from importlib.util import find_spec

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
    """An item is larger than `SESSION_MAX_ITEM_BYTES`; nothing of its batch was stored."""


class WrongOwner(SessionStoreError, PermissionError):
    """A run of one user tried to use the session of another."""


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
