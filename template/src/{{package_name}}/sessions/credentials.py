"""Users and passwords that expire: a function of the app is asked for them before each new connection."""

from __future__ import annotations

import inspect
import pkgutil
import re
import sys
from collections.abc import Awaitable, Callable

from .errors import SessionStoreError, SettingMissing, StoreUnavailable, forget_locals, forgets_locals
from .retry import cancelled_by_caller_alone

Credentials = Callable[[], Awaitable[tuple[str, str]]]
"""Returns user and password for one new connection. It is asked once more if they are refused."""


@forgets_locals
def named_function(name: str | None, variable: str) -> Credentials | None:
    """The function that a setting names; None if it names none.

    Args:
        name: `module:function`; empty is as None.
        variable: Where the name comes from, for messages.

    Raises:
        SettingMissing: The function does not exist, or its module cannot be imported.
    """
    if not name:
        return None
    module = name.partition(":")[0]
    todo = "Name an async function as module:function, of a module that this app can import."
    cause = None
    # No message quotes the name: by mistake it may be a user and a password.
    if not re.fullmatch(r"[^\W\d]\w*(\.\w+)*:[^\W\d]\w*(\.\w+)*", name):
        problem = "this is not written module:function"
    else:
        try:
            function = pkgutil.resolve_name(name)
            if callable(function):
                return function  # type: ignore[no-any-return]  # `ask` looks at what it returns
            problem = "this is not a function"
        except (Exception, SystemExit) as error:  # a module that is a script may end the program
            if isinstance(error, ModuleNotFoundError) and error.name and f"{module}.".startswith(f"{error.name}."):
                problem = "there is no such module"
            elif isinstance(error, AttributeError) and module in sys.modules:
                problem = "the module has no such function"
            else:
                forget_locals(error)
                missing = f": there is no module {error.name}" if isinstance(error, ModuleNotFoundError) else ""
                problem, cause = f"importing the module raised {type(error).__name__}{missing}", error
                todo = "Correct that module, or install what it needs."
    # Out here, so that it does not carry along an error that quotes the name.
    raise SettingMissing(f"{variable}: {problem}. {todo}") from cause


async def ask(credentials: Credentials) -> tuple[str, str]:
    """User and password for a new connection.

    Raises:
        StoreUnavailable: The function failed: what it asks may be away for a moment.
        SessionStoreError: It does not do what it should.
    """
    try:
        with cancelled_by_caller_alone():
            answer = credentials()
            login = await answer if inspect.isawaitable(answer) else None
    except SessionStoreError:
        raise
    except Exception as error:
        forget_locals(error)
        # Not its text, which may hold what it was about to return.
        problem = (
            f"The function `credentials` gave no user and password: {type(error).__name__}. Its error is the cause."
        )
        if isinstance(error, (TypeError, NameError, AttributeError, ImportError)):  # no second try would help
            raise SessionStoreError(problem) from error
        raise StoreUnavailable(problem) from error
    match login:
        case (str(user), str(password)):
            return user, password
    raise SessionStoreError(
        "The function `credentials` must be async and return a tuple of user and password, as text."
    )


def mark_asked(error: BaseException) -> None:
    """Remember in a refusal that the login came from `Credentials`."""
    vars(error)["login_was_asked"] = True


def where_to_look(error: BaseException, variable: str) -> str:
    """What a message about a refused login names as the thing to check."""
    if "login_was_asked" in vars(error):
        return "the user and password that the function `credentials` returns"
    return f"user and password in {variable}"
