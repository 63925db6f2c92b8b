"""The access token of a signed-in user: a text, or a function that returns a fresh one whenever it is called."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError as EndedAsCancelled
from contextlib import suppress

import httpx
from pydantic import SecretStr

from ..errors import SettingMissing, StoreRefused, StoreUnavailable, WrongOwner, forget_locals, forgets_locals
from ..records import Id, id_text
from ..retry import cancelled_by_caller_alone
from .connection import claims_of, subject_of

GetToken = Callable[[], str | Awaitable[str]]
Token = str | GetToken

EARLY_SECONDS = 10.0
"""How long before its end a token is replaced, so that it does not end on the way."""


class AccessToken:
    """A user, and how to get a token of theirs. Equal if user and token (or function) are.

    Args:
        token: A token, or a function (async, or one that does not block) that returns one.
        user_id: Its user. Needed with an async function; any other is called once to find out.

    Raises:
        SettingMissing: This is not a token of a signed-in user, or the user is not known.
        WrongOwner: It is the token of another user.
    """

    @forgets_locals
    def __init__(self, token: Token, user_id: Id | None = None) -> None:
        self.fresh = token if callable(token) else None
        self.first: SecretStr | None = None
        named = "" if user_id is None else id_text("user_id", user_id)
        if callable(token) and named:
            self.owner = named
            return
        found = token() if callable(token) else token
        if inspect.isawaitable(found):
            if inspect.iscoroutine(found):
                found.close()
            raise SettingMissing("access_token is an async function. Pass user_id as well, so that its user is known.")
        self.owner = subject_of(found)
        if named and named != self.owner:
            raise WrongOwner("user_id is not the user of the access token. Leave user_id out.")
        self.first = SecretStr(found)

    def _key(self) -> tuple[object, ...]:
        return (self.owner, self.fresh or self.first)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AccessToken) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())


class TokenInUse:
    """The token that calls are made with, on one event loop."""

    def __init__(self, source: AccessToken) -> None:
        self.source = source
        self._current = source.first
        self._asked_again = False
        """Whether the source was asked early and had no other: its clock may differ, so the server decides."""
        self._asking = asyncio.Lock()

    async def get(self, deadline: float) -> SecretStr:
        """A token that has not ended, as far as this machine can tell.

        Args:
            deadline: Until when the function may take, in the time of the event loop.

        Raises:
            SessionStoreError: The function failed, or its token is of another user.
        """
        now = self._current
        if now is None:
            await self._ask(None, deadline)
        elif self.source.fresh is not None and not self._asked_again and _ends_soon(now):
            with suppress(StoreUnavailable, StoreRefused):  # this one may still do
                await self._ask(now, deadline)
        assert self._current is not None  # noqa: S101 - it was asked for
        return self._current

    async def replace(self, refused: SecretStr, deadline: float) -> bool:
        """Get another token than this one; False if there is none.

        Raises:
            SessionStoreError: As `get` does.
        """
        if self.source.fresh is None:
            return False
        await self._ask(refused, deadline)
        return self._current != refused

    async def _ask(self, before: SecretStr | None, deadline: float) -> None:
        """Have the function called once by all that want another token than `before`."""
        fresh = self.source.fresh
        assert fresh is not None  # noqa: S101 - the callers look
        try:
            async with asyncio.timeout_at(deadline), self._asking:
                if self._current != before:
                    return
                self._current = _checked(await _result(fresh), self.source.owner)
        except (SettingMissing, WrongOwner):  # first: WrongOwner is an OSError too
            raise
        except (OSError, httpx.TransportError, EndedAsCancelled) as error:  # TimeoutError is an OSError
            forget_locals(error)
            problem = f"access_token() gave no token ({type(error).__name__}). Is the server that signs users in up?"
            raise StoreUnavailable(problem) from error
        except Exception as error:
            forget_locals(error)
            raise StoreRefused(
                f"access_token() failed ({type(error).__name__}), so there is no token to call Supabase with. "
                "Let the user sign in again."
            ) from error
        self._asked_again = self._current == before


async def _result(fresh: GetToken) -> str:
    with cancelled_by_caller_alone():
        found = fresh()
        return await found if inspect.isawaitable(found) else found


@forgets_locals
def _checked(token: str, owner: str) -> SecretStr:
    """The token, if it is one of this user. The answer would go to another user's session otherwise."""
    if subject_of(token) != owner:
        raise WrongOwner("access_token() returned the token of another user. Make a session for each user.")
    return SecretStr(token)


@forgets_locals
def _ends_soon(token: SecretStr) -> bool:
    ends = claims_of(token.get_secret_value()).get("exp")
    return isinstance(ends, (int, float)) and ends - time.time() < EARLY_SECONDS
