"""Sessions of users: a server makes one for each request and often does not close it."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable, Mapping

from my_agent.sessions import SupabaseSession, SupabaseSettings, SupabaseStore
from my_agent.sessions.supabase.client import _projects
from proof.supabase.fixtures import token


async def test_forgotten_sessions_of_many_tokens_leave_nothing(
    settings: SupabaseSettings, project: Mapping[str, str], count_connections: Callable[[], Awaitable[int]]
) -> None:
    before = stores()
    for number in range(400):
        user_id = f"00000000-0000-4000-8000-{number:012}"
        session = SupabaseSession("s", settings=settings, access_token=token(project, user_id))
        assert session.store.owner("") == user_id
        if number % 40 == 0:
            await session.get_items()
    del session
    async with asyncio.timeout(10):
        while await count_connections() or _projects or stores() > before:  # noqa: ASYNC110 - the server sends no event
            await asyncio.sleep(0.01)


def stores() -> int:
    gc.collect()
    return sum(type(found) is SupabaseStore for found in gc.get_objects())


async def test_sessions_share_a_store_only_if_their_token_is_the_same(
    settings: SupabaseSettings, project: Mapping[str, str]
) -> None:
    ada, bob = (token(project, f"00000000-0000-4000-8000-{number:012}") for number in (1, 2))
    sessions = [SupabaseSession("s", settings=settings, access_token=each) for each in (ada, ada, bob, None)]
    assert sessions[0].store is sessions[1].store
    assert len({id(session.store) for session in sessions}) == 3
    for session in sessions:
        await session.close()
