"""A store as an app uses it: it gives sessions, and is opened and closed."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any, Self

from .contract import RowStore
from .refs import Id, SessionRef, id_text
from .session import StoredSession

if TYPE_CHECKING:
    from types import TracebackType

    from agents.memory import SessionSettings


class SessionStore(RowStore):
    """Where sessions are kept. One per process and event loop; sessions are light views on it."""

    def session(
        self,
        session_id: Id,
        *,
        user_id: Id = "",
        session_settings: SessionSettings | dict[str, Any] | None = None,
    ) -> StoredSession:
        """A view on one session; no I/O, nothing to close.

        Raises:
            InvalidSessionId: See `SessionRef.check`.
        """
        ref = SessionRef(self.owner(id_text("user_id", user_id)), session_id)
        return StoredSession(lambda: self, ref, session_settings)

    def __await__(self) -> Generator[Any, None, Self]:
        return self.__aenter__().__await__()

    async def __aenter__(self) -> Self:
        try:
            await self.open()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
