"""A session that vanishes takes none with it that was to stay."""

from __future__ import annotations

import asyncio

from my_agent.sessions import RedisSession, RedisSettings
from proof.support.helpers import texts, user


async def test_a_time_to_live_counts_only_for_the_session_it_was_given_to(settings: RedisSettings) -> None:
    short = settings.model_copy(update={"session_ttl": 0.2})
    async with RedisSession("scratch", settings=short) as scratch, RedisSession("record", settings=settings) as record:
        await scratch.add_items([user("gone soon")])
        await record.add_items([user("stays")])
        async with asyncio.timeout(10):
            while await scratch.get_items():  # noqa: ASYNC110 - the server sends no event
                await asyncio.sleep(0.05)
        assert texts(await record.get_items()) == ["stays"]
