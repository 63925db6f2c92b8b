"""The hash of a session, changed by hand into something that is not ours: listings and writes go on."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
import redis

from my_agent.sessions import RedisStore, SessionRef
from my_agent.sessions.records import Batch, Row
from my_agent.sessions.redis.keys import keys_of
from proof.redis.fixtures import settings_for
from proof.redis.servers import PASSWORD, Server

KEY, OTHER = SessionRef("ada", "s"), SessionRef("ada", "t")
VALUES = ["", "x", "-1", "1.5", "1e30", "9" * 40, "null", "[1]", '"a"', '{"a":', "\x00"]


@pytest.mark.parametrize("field", ["metadata", "item_count", "created_at", "updated_at"])
async def test_a_field_that_cannot_be_read_counts_as_missing(own_server: Server, field: str) -> None:
    async with RedisStore(settings_for(own_server.url)) as store:
        for value in VALUES:
            for key in (KEY, OTHER):
                await store.append(key, Batch.of([Row("a")]))
            with redis.Redis("127.0.0.1", own_server.port, password=PASSWORD) as client:
                client.hset(keys_of("agent", KEY).info, field, value)
            found = await store.find_session(KEY)
            assert found is not None
            assert found.updated_at <= datetime.now(UTC)
            assert {info.session_id for info in (await store.list_sessions("ada")).sessions} == {"s", "t"}
            await store.append(KEY, Batch.of([Row("b")]))
            await store.update_session(KEY, metadata={"mended": True})
            mended = await store.find_session(KEY)
            assert mended is not None
            assert (mended.item_count, mended.metadata) == (len(await store.tail(KEY, None)), {"mended": True})
            assert await store.prune(datetime(2020, 1, 1, tzinfo=UTC)) == 0
            assert await store.delete_user("ada") == 2
